// Keeps a page current without loading it again: whatever is marked data-live is fetched anew and put in its place.
"use strict";

const EVERY_MS = 2000;
const address = location.pathname;
const drawn = new Map();
let known = null;
let waiting = false;

const liveParts = (root) => [...root.querySelectorAll("[data-live][id]")];
const names = (parts) => parts.map((part) => part.id).join(" ");

function remember() {
  drawn.clear();
  for (const part of liveParts(document)) drawn.set(part.id, part.innerHTML);
}

// What a person has opened, scrolled or is standing on stays so.
function keeping(part, change) {
  const focused = document.activeElement;
  const inside = focused && part.contains(focused) && focused.id;
  const open = [...part.querySelectorAll("details[open] > summary")].map((each) => each.id);
  const log = part.querySelector("pre");
  const atEnd = !log || log.scrollTop + log.clientHeight >= log.scrollHeight - 4;
  const place = log ? log.scrollTop : 0;
  change();
  for (const id of open) document.getElementById(id)?.parentElement.setAttribute("open", "");
  const after = part.querySelector("pre");
  if (after) after.scrollTop = atEnd ? after.scrollHeight : place;
  if (inside) document.getElementById(inside)?.focus({ preventScroll: true });
}

function put(fetched) {
  const mine = liveParts(document);
  const theirs = liveParts(fetched);
  if (names(mine) !== names(theirs)) {
    const main = document.getElementById("content");
    keeping(main, () => main.replaceChildren(...document.importNode(fetched.getElementById("content"), true).childNodes));
    remember();
    return;
  }
  mine.forEach((part, index) => {
    const text = theirs[index].innerHTML;
    const typing = part.contains(document.activeElement) && document.activeElement.tagName === "INPUT";
    if (drawn.get(part.id) === text || typing) return;
    drawn.set(part.id, text);
    keeping(part, () => part.replaceChildren(...document.importNode(theirs[index], true).childNodes));
  });
}

function say(text) {
  const line = document.getElementById("connection");
  line.hidden = text === "";
  if (line.textContent !== text) line.textContent = text;
}

async function refresh() {
  if (document.hidden || waiting || liveParts(document).length === 0) return;
  waiting = true;
  try {
    const answer = await fetch(address, { cache: "no-store", headers: known ? { "If-None-Match": known } : {} });
    if (answer.status === 200) {
      known = answer.headers.get("ETag");
      put(new DOMParser().parseFromString(await answer.text(), "text/html"));
    }
    say(answer.ok || answer.status === 304 ? "" : `The dashboard answers with ${answer.status}; what is shown may be old.`);
  } catch {
    say("The dashboard does not answer; what is shown may be old.");
  } finally {
    waiting = false;
  }
}

document.addEventListener("submit", (event) => {
  // A second press would only be refused.
  for (const button of event.target.querySelectorAll("button")) button.disabled = true;
});
document.addEventListener("visibilitychange", refresh);
remember();
for (const log of document.querySelectorAll("pre")) log.scrollTop = log.scrollHeight;
setInterval(refresh, EVERY_MS);
