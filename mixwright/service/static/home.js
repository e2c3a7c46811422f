"use strict";
for (const command of document.querySelectorAll(".command")) {
  const button = command.querySelector("button");
  if (!navigator.clipboard) continue; // pages over plain HTTP from another machine have none
  button.hidden = false;
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(command.querySelector("pre").textContent);
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  });
}
// While jobs run, show how far they are; not while the page is hidden or something is marked to be copied.
if ("busy" in document.body.dataset) {
  setInterval(() => {
    if (!document.hidden && getSelection().isCollapsed) location.reload();
  }, 3000);
}
