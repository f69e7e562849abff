"""The passes of ONNX Runtime's graph optimiser that can be left out one by one.

ONNX Runtime has no call that lists them, and says nothing about a name that it does not know.
Source: the names that 1.31.1 logs while it opens a graph on the CPU, and those of its rules; with
all of them in `disabled_optimizers`, its log shows four others that cannot be left out, which put
in casts and copies.
"""

from triptych.runtimes._onnx_attention import PASS_NAME

_TRANSFORMERS = (
    "AttentionFusion", "BiasDropoutFusion", "BiasGeluFusion", "BiasSkipLayerNormFusion",
    "BiasSoftmaxFusion", "CommonSubexpressionElimination", "ConstantFolding", "ConstantSharing",
    "ConvActivationFusion", "ConvAddActivationFusion", "DoubleQDQPairsRemover",
    "DynamicQuantizeMatMulFusion", "EmbedLayerNormFusion", "FastGeluFusion",
    "FreeDimensionOverrideTransformer", "FuseFp16InitializerToFp32NodeTransformer",
    "GatherSliceToSplitFusion", "GatherToSliceFusion", "GeluFusionL1", "GeluFusionL2",
    "GemmActivationFusion", "GroupQueryAttentionFusion", "GroupQueryAttentionPreNormFusion",
    "LayerNormFusionL1", "LayerNormFusionL2", "MatMulActivationFusion", "MatMulAddFusion",
    "MatMulIntegerToFloatFusion", "MatMulNBitsFusion", "MatMulScaleFusion",
    "MatmulTransposeFusion", "NchwcTransformer", "NhwcTransformer", "QDQFinalCleanupTransformer",
    "QDQPropagationTransformer", "QDQS8ToU8Transformer", "QDQSelectorActionTransformer",
    "QuickGeluFusion", "ReshapeFusion", "SimplifiedLayerNormFusion", "SkipLayerNormFusion",
    "SliceConcatToSpaceToDepthFusion", "TransposeOptimizer", "WeightBiasQuantization",
    "WhereDummyDq",
)  # fmt: skip

_RULES = (
    "CastChainElimination", "CastElimination", "ClipQuantRewrite", "ConvAddFusion",
    "ConvBNFusion", "ConvMulFusion", "DivMulFusion", "EliminateDropout", "EliminateIdentity",
    "EliminateSlice", "ExpandElimination", "FuseReluClip", "GemmSumFusion",
    "GemmTransposeFusion", "LabelEncoderFusion", "MatMul_BatchNormalization_Fusion",
    "NoopElimination", "NotWhereFusion", "Pad_Fusion", "PreShapeNodeElimination",
    "ReluQuantRewrite", "UnsqueezeElimination",
)  # fmt: skip
"""Those that rewrite one node at a time, and that a log does not name."""

OPTIMIZERS = (PASS_NAME, *_TRANSFORMERS, *_RULES)
"""What `disabled_optimizers` of our runtime takes: ours before ONNX Runtime's."""
