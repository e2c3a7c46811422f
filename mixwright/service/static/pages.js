"use strict";
// What pages do beyond links and forms. Without it they work by loading anew.

// Copy buttons.
function selectAndCopy(element) {
  // Pages over plain HTTP from another machine have no clipboard API.
  const range = document.createRange();
  range.selectNodeContents(element);
  const selection = getSelection();
  selection.removeAllRanges();
  selection.addRange(range);
  return document.execCommand("copy");
}

async function copy(button) {
  const source = button.parentElement.querySelector("pre");
  let done = true;
  try {
    if (navigator.clipboard) await navigator.clipboard.writeText(source.textContent);
    else done = selectAndCopy(source);
  } catch {
    done = selectAndCopy(source);
  }
  button.textContent = done ? "Copied" : "Press Ctrl+C";
  setTimeout(() => { button.textContent = "Copy"; }, 1500);
}

function showCopyButtons(root) {
  for (const button of root.querySelectorAll("button.copy")) button.hidden = false;
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("button.copy");
  if (button) copy(button);
});

// Parts of a page that are taken from the same page at another address.
const latest = new Map();
const address = () => location.pathname + location.search;
let shown = address();

async function swap(id, where, { push = false, quietly = false } = {}) {
  const turn = (latest.get(id) ?? 0) + 1;
  latest.set(id, turn);
  if (!quietly) document.getElementById(id).setAttribute("aria-busy", "true");
  try {
    const answer = await fetch(where, { headers: { Accept: "text/html" }, credentials: "same-origin" });
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    if (latest.get(id) !== turn) return;
    const fresh = page.getElementById(id);
    if (!fresh) { location.assign(where); return; }
    replace(document.getElementById(id), document.adoptNode(fresh));
    if (push) history.pushState(null, "", answer.redirected ? answer.url : where);
    shown = address();
  } finally {
    if (latest.get(id) === turn) document.getElementById(id)?.removeAttribute("aria-busy");
  }
}

// What was open stays open, and the focus stays on the link that had it.
function replace(old, fresh) {
  const open = new Set([...old.querySelectorAll("details[open] > summary")].map((each) => each.textContent));
  for (const summary of fresh.querySelectorAll("details > summary")) {
    if (open.has(summary.textContent)) summary.parentElement.open = true;
  }
  const focused = old.contains(document.activeElement) ? document.activeElement : null;
  const label = focused?.getAttribute("href") && focused.textContent;
  old.replaceWith(fresh);
  showCopyButtons(fresh);
  if (label) [...fresh.querySelectorAll("a")].find((each) => each.textContent === label)?.focus({ preventScroll: true });
}

document.addEventListener("click", (event) => {
  const link = event.target.closest("a[data-swaps]");
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey || event.button) return;
  event.preventDefault();
  swap(link.dataset.swaps, link.href, { push: true }).catch(() => location.assign(link.href));
});
// Back to what has been swapped away; a jump inside the page is none.
addEventListener("popstate", () => { if (address() !== shown) location.reload(); });

// Forms whose results follow what is typed.
function formAddress(form) {
  const fields = [...new FormData(form)].filter(([, value]) => value !== "");
  const query = new URLSearchParams(fields).toString();
  return form.action + (query ? `?${query}` : "");
}

for (const form of document.querySelectorAll("form[data-live]")) {
  let timer;
  const go = (event) => {
    clearTimeout(timer);
    const where = formAddress(form);
    timer = setTimeout(() => {
      history.replaceState(null, "", where);
      swap(form.dataset.live, where).catch(() => {});
    }, event.type === "change" ? 0 : 250);
  };
  form.addEventListener("input", go);
}
for (const form of document.querySelectorAll("form[data-swaps]")) {
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const where = formAddress(form);
    swap(form.dataset.swaps, where, { push: true }).catch(() => location.assign(where));
  });
}

// Parts that change by themselves; not while the page is hidden or something is marked to be copied.
setInterval(() => {
  if (document.hidden || !getSelection().isCollapsed) return;
  for (const part of document.querySelectorAll("[data-refresh]")) {
    swap(part.id, location.href, { quietly: true }).catch(() => {});
  }
}, 3000);

// A link to one format or one part opens it.
function openTarget() {
  const target = location.hash && document.getElementById(location.hash.slice(1));
  const details = target && target.closest("details");
  if (details) details.open = true;
}
addEventListener("hashchange", openTarget);
openTarget();
showCopyButtons(document);
