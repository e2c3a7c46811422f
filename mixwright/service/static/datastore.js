"use strict";
// The command beside the search form says what the form says.
const form = document.getElementById("search-form");
const body = document.getElementById("search-command");

function follow() {
  const said = Object.fromEntries(new FormData(form));
  const request = { queries: [said.q || "your question"], k: Number(said.k) || 3, mode: said.mode };
  if (said.domain) request.domains = [said.domain];
  if (said.where) request.where = said.where;
  // Inside single quotes a shell leaves all as it is but the quote itself.
  const json = JSON.stringify(request).replaceAll("'", "'\\''");
  body.textContent = `${body.dataset.before}'${json}'`;
}
if (form && body) {
  form.addEventListener("input", follow);
}
