"use strict";
// Sliders over the saved steps: which step is shown, and how much of the reference lies over it.
(() => {
  const player = document.querySelector(".player");
  if (!player) return;
  const steps = [...player.querySelectorAll(".step")];
  const step = player.querySelector("#step");
  const wipe = player.querySelector("#wipe");

  for (const shown of steps) {
    const [reference, ...candidates] = shown.querySelectorAll(".column");
    const original = reference.querySelector("img");
    if (!original) continue;
    for (const candidate of candidates) {
      const picture = candidate.querySelector(".frame img");
      if (!picture || picture.width !== original.width || picture.height !== original.height) continue;
      const overlay = original.cloneNode();
      overlay.alt = "";
      overlay.className = "overlay";
      picture.after(overlay);
      picture.parentElement.classList.add("wiped");
    }
  }

  const showStep = () => {
    steps.forEach((shown, place) => { shown.hidden = place !== step.valueAsNumber; });
    const name = steps[step.valueAsNumber].dataset.step;
    player.querySelector("#step-shown").value = `${name} of ${steps.at(-1).dataset.step}`;
    step.setAttribute("aria-valuetext", `step ${name}`);
  };
  const showWipe = () => {
    player.style.setProperty("--wipe", `${wipe.value}%`);
    player.classList.toggle("wiping", wipe.valueAsNumber > 0);
    player.querySelector("#wipe-share").value = `${wipe.value} %`;
    wipe.setAttribute("aria-valuetext", `${wipe.value} % reference`);
  };

  player.querySelector(".controls").hidden = false;
  step.addEventListener("input", showStep);
  showStep();
  if (wipe) {
    wipe.addEventListener("input", showWipe);
    showWipe();
  }
})();
