/* Pages that keep themselves up to date. Without this file they work all the same.

   The page is fetched again and each part marked with data-dj-live is replaced where it has changed.
   Nothing is fetched while the tab is hidden, while rows are ticked or something is being typed, or
   when the switch is off. Focus, scroll and opened details stay as they are. */

const EVERY = 5000;
const SLOWEST = 60000;
const KEY = "django-jobs-live";

const parts = (root) => [...root.querySelectorAll("[data-dj-live]")];

function isBusy() {
    if (document.hidden) return true;
    if (document.querySelector("input.action-select:checked, #action-toggle:checked")) return true;
    const at = document.activeElement;
    if (at && at.matches("input:not([type=checkbox]), select, textarea") && at.value) return true;
    return !document.getSelection().isCollapsed;
}

/* Where an element is within its part, so that its like can be found in the new one. */
function pathTo(part, node) {
    const path = [];
    for (let at = node; at && at !== part; at = at.parentElement) {
        path.unshift([...at.parentElement.children].indexOf(at));
    }
    return path;
}

function follow(part, path) {
    return path.reduce((at, index) => at && at.children[index], part);
}

function keepOpen(from, to) {
    const name = (details) => details.querySelector("summary")?.textContent.trim();
    const seen = new Map();
    const key = (details) => {
        const text = name(details);
        return text + "#" + (seen.get(text) ?? 0);
    };
    const count = (details) => seen.set(name(details), (seen.get(name(details)) ?? 0) + 1);
    const state = new Map();
    for (const details of from.querySelectorAll("details")) {
        state.set(key(details), details.open);
        count(details);
    }
    seen.clear();
    for (const details of to.querySelectorAll("details")) {
        if (state.has(key(details))) details.open = state.get(key(details));
        count(details);
    }
}

/* As the server sent it: what people opened or ticked since does not count as a change. */
const sent = new WeakMap();

function replace(current, fresh) {
    const text = fresh.outerHTML;
    if (sent.get(current) === text) return;
    const focused = current.contains(document.activeElement) ? pathTo(current, document.activeElement) : null;
    const boxes = "pre, .dj-scroll, .results";
    const scrolled = [...current.querySelectorAll(boxes)].map((n) => [n.scrollTop, n.scrollLeft]);
    keepOpen(current, fresh);
    const placed = replaceRows(current, fresh) ?? replaceAll(current, fresh);
    sent.set(placed, text);
    [...placed.querySelectorAll(boxes)].forEach((n, i) => {
        if (scrolled[i]) [n.scrollTop, n.scrollLeft] = scrolled[i];
    });
    if (focused) follow(placed, focused)?.focus({ preventScroll: true });
}

function replaceAll(current, fresh) {
    const placed = document.importNode(fresh, true);
    current.replaceWith(placed);
    const bar = document.querySelector("div.actions");
    if (bar && placed.querySelector("input.action-select") && window.Actions) {
        // The admin's own script counts the boxes that it was given: it has to be given the new ones.
        bar.replaceWith(bar.cloneNode(true));
        window.Actions(document.querySelectorAll("tr input.action-select"));
    }
    return placed;
}

/* Lists keep their rows, and so the boxes that the admin's own script knows; only what they say changes. */
function replaceRows(current, fresh) {
    const rows = (part) => [...part.querySelectorAll("#result_list tbody tr")];
    const [old, now] = [rows(current), rows(fresh)];
    if (!old.length || old.length !== now.length) return null;
    old.forEach((row, index) => {
        const cells = [...now[index].children];
        if (row.children.length !== cells.length) return;
        cells.forEach((cell, at) => {
            const box = row.children[at].querySelector("input.action-select");
            const other = cell.querySelector("input.action-select");
            if (box && other) {
                box.value = other.value;
                box.setAttribute("aria-label", other.getAttribute("aria-label"));
            } else if (row.children[at].outerHTML !== cell.outerHTML) {
                row.children[at].replaceWith(document.importNode(cell, true));
            }
        });
    });
    return current;
}

async function refresh() {
    const answer = await fetch(location.href, { credentials: "same-origin", headers: { "X-Requested-With": "fetch" } });
    if (!answer.ok || answer.redirected) throw new Error(String(answer.status));
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
    if (isBusy()) return;
    const at = [scrollX, scrollY];
    const known = new Map(parts(fresh).map((part) => [part.dataset.djLive, part]));
    for (const part of parts(document)) {
        const other = known.get(part.dataset.djLive);
        if (other) replace(part, other);
    }
    if (scrollX !== at[0] || scrollY !== at[1]) scrollTo(...at);
}

function start(control) {
    const box = control.querySelector("input");
    const said = control.querySelector("[data-dj-said]");
    let wait = EVERY;
    for (const part of parts(document)) sent.set(part, part.outerHTML);
    control.hidden = false;
    box.checked = localStorage.getItem(KEY) !== "off";
    box.addEventListener("change", () => {
        localStorage.setItem(KEY, box.checked ? "on" : "off");
        if (box.checked) turn();
    });
    document.addEventListener("visibilitychange", () => document.hidden || turn());

    let timer = 0;
    async function turn() {
        clearTimeout(timer);
        if (!box.checked) return;
        try {
            if (!isBusy()) await refresh();
            wait = EVERY;
            said.hidden = true;
        } catch {
            // The server is away, or the session has ended: ask less and less often.
            wait = Math.min(wait * 2, SLOWEST);
            said.hidden = false;
        }
        timer = setTimeout(turn, Number(control.dataset.djEvery) || wait);
    }
    timer = setTimeout(turn, Number(control.dataset.djEvery) || wait);
}

const control = document.querySelector("[data-dj-control]");
if (control && parts(document).length) start(control);
