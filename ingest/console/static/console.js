// Behaviour of every page: navigation on phones, theme, copying, times, dialogs, notices and the live stream.
// Each page works without this file, except for what moves by itself.
"use strict";

document.documentElement.classList.replace("no-js", "js");

const STALE_MS = 15_000;     // without an event for so long, the page says that it is not live
const LIST_PAUSE_MS = 4_000; // a list is read again at most so often, whatever arrives

const all = (selector, root = document) => [...root.querySelectorAll(selector)];

// --- navigation on phones

document.addEventListener("click", (event) => {
  const toggle = event.target.closest("[data-menu]");
  if (!toggle) return;
  const open = toggle.closest(".side").classList.toggle("open");
  toggle.setAttribute("aria-expanded", String(open));
});

// --- theme: a cookie, so that the server writes the attribute and no page flashes

document.addEventListener("click", (event) => {
  const button = event.target.closest("[data-theme-toggle]");
  if (!button) return;
  const root = document.documentElement;
  const isDark = root.dataset.theme
    ? root.dataset.theme === "dark"
    : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = isDark ? "light" : "dark";
  const secure = location.protocol === "https:" ? "; Secure" : "";
  document.cookie = `theme=${root.dataset.theme}; Path=/; Max-Age=31536000; SameSite=Strict${secure}`;
  document.dispatchEvent(new Event("themechange"));
});

// --- copy an identifier

document.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-copy]");
  if (!button) return;
  try {
    await navigator.clipboard.writeText(button.dataset.copy);
    showToast("Copied to the clipboard.");
  } catch {
    showToast("The browser did not allow copying.", "fail");
  }
});

// --- times: "3 min ago" grows older by itself

const UNITS = [[60, "s", 1], [3600, "min", 60], [172_800, "h", 3600], [Infinity, "days", 86_400]];

function describeTime(milliseconds) {
  const seconds = (Date.now() - milliseconds) / 1000;
  const distance = Math.abs(seconds);
  if (distance < 1.5) return "just now";
  const [, unit, divisor] = UNITS.find(([limit]) => distance < limit);
  const amount = `${Math.floor(distance / divisor)} ${unit}`;
  return seconds < 0 ? `in ${amount}` : `${amount} ago`;
}

function refreshTimes(root = document) {
  for (const time of all("time[data-ms]", root)) {
    const text = describeTime(Number(time.dataset.ms));
    if (time.textContent !== text) time.textContent = text;
  }
}
setInterval(refreshTimes, 5000);

// --- notices

function showToast(text, kind = "ok") {
  const toast = document.createElement("div");
  toast.className = `toast ${kind}`;
  toast.setAttribute("role", kind === "fail" ? "alert" : "status");
  const words = document.createElement("span");
  words.textContent = text;
  toast.append(words);
  document.querySelector(".toasts")?.append(toast);
  armToast(toast);
}

function armToast(toast) {
  const close = document.createElement("button");
  close.type = "button";
  close.setAttribute("aria-label", "Dismiss");
  close.textContent = "✕";
  close.addEventListener("click", () => toast.remove());
  toast.append(close);
  if (!toast.classList.contains("fail")) setTimeout(() => toast.remove(), 9000);
}

// --- dialogs: the server answers an action with its confirmation, which is shown in one dialog

document.addEventListener("htmx:afterSwap", (event) => {
  const dialog = event.detail.target.closest?.("dialog");
  if (dialog && !dialog.open && dialog.children.length) dialog.showModal();
});
document.addEventListener("click", (event) => {
  const cancel = event.target.closest("dialog [data-close]");
  if (cancel) {
    event.preventDefault();
    cancel.closest("dialog").close();
  }
});
document.addEventListener("htmx:responseError", (event) => {
  const { status } = event.detail.xhr;
  const cause = status === 401 ? "Your login has ended." : `The console answered ${status}.`;
  showToast(`${cause} Load the page again.`, "fail");
});
document.addEventListener("htmx:sendError", () => showToast("The console cannot be reached.", "fail"));

// --- a form that is sent twice would act twice

document.addEventListener("submit", (event) => {
  if (event.defaultPrevented || event.target.dataset.sent) {
    if (event.target.dataset.sent) event.preventDefault();
    return;
  }
  if (event.target.method === "post") {
    event.target.dataset.sent = "1";
    setTimeout(() => delete event.target.dataset.sent, 3000);
  }
});

// --- drop a file

function armDropZones(root = document) {
  for (const zone of all("[data-drop]", root)) {
    const input = zone.querySelector("input[type=file]");
    for (const name of ["dragenter", "dragover"]) {
      zone.addEventListener(name, (event) => {
        event.preventDefault();
        zone.classList.add("over");
      });
    }
    zone.addEventListener("dragleave", () => zone.classList.remove("over"));
    zone.addEventListener("drop", (event) => {
      event.preventDefault();
      zone.classList.remove("over");
      if (event.dataTransfer.files.length) {
        input.files = event.dataTransfer.files;
        zone.closest("form").requestSubmit();
      }
    });
  }
}

// --- live: one stream for this browser's page; parts come as HTML that the server made once for all browsers

const live = { source: null, heard: 0, seen: new Map() };

function setLiveState(state) {
  for (const element of all("[data-live-state]")) {
    if (element.dataset.state === state) continue;
    element.dataset.state = state;
    element.textContent = { on: "Live", off: "Not live", wait: "Connecting" }[state];
  }
}

function openStream() {
  const url = document.body.dataset.events;
  if (!url || live.source) return;
  setLiveState("wait");
  live.source = new EventSource(url);
  live.source.addEventListener("parts", (event) => {
    noteEvent();
    for (const [name, html] of Object.entries(JSON.parse(event.data))) replacePart(name, html);
  });
  live.source.addEventListener("versions", (event) => {
    noteEvent();
    for (const [name, version] of Object.entries(JSON.parse(event.data))) noteVersion(name, version);
  });
  live.source.addEventListener("beat", noteEvent);
  live.source.addEventListener("error", () => setLiveState("off"));
}

function noteEvent() {
  live.heard = Date.now();
  setLiveState("on");
}

function closeStream() {
  live.source?.close();
  live.source = null;
}

function replacePart(name, html) {
  const target = document.querySelector(`[data-live="${CSS.escape(name)}"]`);
  if (!target || isInUse(target)) return;
  // The server escapes every value; nothing in it is a script, and the policy of the page allows none.
  const focused = target.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
  target.innerHTML = html;
  if (focused) target.querySelector(`[href="${CSS.escape(focused)}"]`)?.focus();
  refreshTimes(target);
}

function noteVersion(name, version) {
  live.seen.set(name, version);
  for (const list of all(`[data-live-list="${CSS.escape(name)}"]`)) refreshIfOld(list);
}

// A list without a version stays as it is. All viewers share what the server reads, so a list may be a little
// older than the version that was announced: it is asked for again until it is the same.
function refreshIfOld(list) {
  const { liveList, version } = list.dataset;
  if (version && live.seen.has(liveList) && live.seen.get(liveList) !== version) refreshList(list);
}

function refreshList(list) {
  if (list.dataset.waits) return;
  const pause = Math.max(0, Number(list.dataset.refreshed || 0) + LIST_PAUSE_MS - Date.now());
  list.dataset.waits = "1";
  setTimeout(() => {
    delete list.dataset.waits;
    if (!list.isConnected) return;
    if (isInUse(list)) {
      refreshList(list);
      return;
    }
    list.dataset.refreshed = String(Date.now());
    htmx.trigger(list, "refresh");
  }, pause || Math.random() * 300);
}

function isInUse(element) {
  if (document.querySelector("dialog[open]")) return true;
  const selection = getSelection();
  if (selection && !selection.isCollapsed && element.contains(selection.anchorNode)) return true;
  return element.contains(document.activeElement) && document.activeElement.matches("input, select, textarea");
}

// What a page asks by itself does not prolong the session.
document.addEventListener("htmx:configRequest", (event) => {
  if (event.detail.triggeringEvent?.type === "refresh") event.detail.headers["X-Live"] = "1";
});

// A replaced list keeps the time of its last reading.
document.addEventListener("htmx:beforeSwap", (event) => {
  const { target } = event.detail;
  if (target?.dataset?.liveList) lastRefreshed.set(target.id, target.dataset.refreshed);
});
const lastRefreshed = new Map();
document.addEventListener("htmx:afterSettle", (event) => {
  const list = event.detail.elt;
  if (list?.dataset?.liveList && lastRefreshed.has(list.id)) {
    list.dataset.refreshed = lastRefreshed.get(list.id);
    refreshIfOld(list);
  }
  refreshTimes();
});

// A page in the background needs no stream, and browsers open only six connections to one host.
document.addEventListener("visibilitychange", () => (document.hidden ? closeStream() : openStream()));
addEventListener("pagehide", closeStream);
addEventListener("pageshow", () => {
  if (!document.hidden) openStream();
});
setInterval(() => {
  if (live.source && live.heard && Date.now() - live.heard > STALE_MS) setLiveState("off");
  if (live.source?.readyState === EventSource.CLOSED) {
    closeStream();
    openStream();
  }
}, 3000);

all(".toast").forEach(armToast);
armDropZones();
refreshTimes();
if (!document.hidden) openStream();
