"""A plan as values for JSON, and as rows to show."""

from triptych.workflows.generation.plan import Plan


def plan_record(plan: Plan) -> dict[str, object]:
    """A plan as values that JSON can hold, without its single pictures."""
    arithmetic = plan.arithmetic
    return {
        "shard": {"index": plan.shard.index, "count": plan.shard.count},
        "num_queries": plan.num_queries,
        "num_pictures_of_all_shards": plan.num_units,
        "num_pictures": len(plan.units),
        "num_pictures_to_do": len(plan.work),
        "num_files": plan.num_files,
        "num_files_to_do": plan.num_files_to_do,
        "reasons": dict(sorted(plan.reasons.items())),
        "save_steps": list(plan.save_steps),
        "steps": {
            "separately": arithmetic.steps_separately,
            "together": arithmetic.steps_together,
            "total_separately": arithmetic.total_separately,
            "total_together": arithmetic.total_together,
            "ratio": arithmetic.ratio,
            "to_do": plan.num_steps_to_do,
        },
        "num_prompts_unused": plan.num_prompts_unused,
        "warnings": list(plan.warnings),
        "strangers": list(plan.strangers),
        "stale_caches": [str(path) for path in plan.stale_caches],
        "num_skipped_records": plan.num_skipped_records,
    }


def plan_rows(plan: Plan) -> tuple[tuple[str, str], ...]:
    """A plan as labels and texts, the most important first; what is 0 and no news is left out."""
    arithmetic = plan.arithmetic
    part = f" in shard {plan.shard.index}/{plan.shard.count}" if plan.shard.count > 1 else ""
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in sorted(plan.reasons.items()))
    together = f"{arithmetic.steps_together} in one run"
    separately = f"{arithmetic.steps_separately} in a run for each"
    total = f"{arithmetic.total_together:,} against {arithmetic.total_separately:,}"
    rows = (
        ("queries", f"{plan.num_queries:,}"),
        ("pictures", f"{len(plan.units):,}" + (f" of {plan.num_units:,}{part}" if part else "")),
        ("files", f"{plan.num_files:,} at steps {', '.join(map(str, plan.save_steps))}"),
        ("to do", f"{plan.num_files_to_do:,} files ({reasons})" if reasons else _nothing(plan)),
        ("steps a picture", f"{together}, {separately}: {arithmetic.share_spared:.1%} fewer"),
        ("steps for all", f"{total}; {plan.num_steps_to_do:,} to do"),
        ("prompts not used", f"{plan.num_prompts_unused:,}"),
        ("files of no picture", f"{len(plan.strangers):,}"),
        ("stale feature caches", f"{len(plan.stale_caches):,}"),
        ("unreadable ledger lines", f"{plan.num_skipped_records:,}"),
    )
    return tuple((label, text) for label, text in rows if text != "0")


def _nothing(plan: Plan) -> str:
    if plan.units:
        return "nothing: every file is there"
    return "nothing: there are more shards than prompts, and this one has none"
