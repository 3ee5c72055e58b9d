(() => {
  "use strict";
  // Replaces the parts of the page every few seconds. Without this script the page is complete, but not refreshed.
  const EVERY = 5000, TIMEOUT = 10000;
  const byId = (id) => document.getElementById(id);
  const [button, stale, live] = [byId("pause"), byId("stale"), byId("live")];
  let timer = 0, paused = false, busy = false, good = Date.now(), announced = byId("headline").textContent;

  const swap = (fresh) => {
    const focused = document.activeElement && document.activeElement.id;
    const selection = getSelection();
    const [x, y] = [scrollX, scrollY];
    for (const open of document.querySelectorAll("details[open]")) {
      const same = fresh.getElementById(open.id);
      if (same) same.open = true;
    }
    for (const next of fresh.querySelectorAll("[data-part]")) {
      const part = byId(next.id);
      // A part with selected text is not replaced until the selection ends.
      const selected = part && !selection.isCollapsed && part.contains(selection.anchorNode);
      if (part && !selected && !part.isEqualNode(next)) part.replaceWith(document.adoptNode(next));
    }
    const again = focused && byId(focused);
    if (again && again !== document.activeElement) again.focus({ preventScroll: true });
    scrollTo(x, y);
    document.title = fresh.title;
    const icon = fresh.getElementById("icon").getAttribute("href");
    if (byId("icon").getAttribute("href") !== icon) byId("icon").setAttribute("href", icon);
    const headline = byId("headline").textContent;
    if (headline !== announced) live.textContent = announced = headline;
  };

  const fail = () => {
    const seconds = Math.round((Date.now() - good) / 1000);
    const text = "This page is outdated: the service has not answered for " + seconds + " seconds. The page retries.";
    // An alert is announced when it appears, so only its first text is an alert.
    stale.setAttribute("aria-live", stale.hidden ? "assertive" : "off");
    stale.textContent = text;
    stale.hidden = false;
    document.body.classList.add("outdated");
  };

  const refresh = async () => {
    if (busy) return;
    busy = true;
    clearTimeout(timer);
    try {
      const answer = await fetch(location.pathname, { cache: "no-store", signal: AbortSignal.timeout(TIMEOUT) });
      if (!answer.ok) throw new Error(answer.status);
      const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
      if (!fresh.getElementById("verdict")) throw new Error("not this page");
      // A new release has another style and script, which the policy of this page forbids.
      if (fresh.documentElement.dataset.build !== document.documentElement.dataset.build) return location.reload();
      swap(fresh);
      good = Date.now();
      stale.hidden = true;
      document.body.classList.remove("outdated");
    } catch {
      fail();
    } finally {
      busy = false;
      if (!paused && !document.hidden) timer = setTimeout(refresh, EVERY);
    }
  };

  button.hidden = false;
  button.addEventListener("click", () => {
    paused = !paused;
    button.setAttribute("aria-pressed", String(paused));
    clearTimeout(timer);
    if (!paused) refresh();
  });
  document.addEventListener("visibilitychange", () => {
    clearTimeout(timer);
    if (!document.hidden && !paused) refresh();
  });
  timer = setTimeout(refresh, EVERY);
})();
