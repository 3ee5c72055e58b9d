//! The status page in a real browser: it violates no policy, fits the screen of a phone, is readable in both themes, and keeps its
//! scroll position when it refreshes.

use authkit_sync::dev::workos::ApiFaults;
use serde_json::json;

use crate::status_page::Site;
use crate::support::chromium::Chromium;

/// Returns each text whose contrast with its background is below 4.5 (WCAG AA), and each element that is wider than the window.
const FAULTS: &str = r##"(() => {
  const rgb = (color) => color.match(/[\d.]+/g).map(Number);
  const luminance = ([r, g, b]) => [r, g, b].map((part) => part / 255)
    .map((part) => part <= .04045 ? part / 12.92 : ((part + .055) / 1.055) ** 2.4)
    .reduce((sum, part, index) => sum + part * [.2126, .7152, .0722][index], 0);
  const background = (element) => {
    for (; element; element = element.parentElement) {
      const color = rgb(getComputedStyle(element).backgroundColor);
      if (color.length < 4 || color[3] > 0) return color;
    }
    return [255, 255, 255];
  };
  const faults = [];
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const element = texts.currentNode.parentElement;
    if (!texts.currentNode.data.trim() || element.closest("script, style, svg, .hidden, [hidden]")) continue;
    const [one, two] = [luminance(rgb(getComputedStyle(element).color)), luminance(background(element))];
    const contrast = (Math.max(one, two) + .05) / (Math.min(one, two) + .05);
    if (contrast < 4.5) faults.push(contrast.toFixed(2) + ": " + texts.currentNode.data);
  }
  if (document.documentElement.scrollWidth > innerWidth) {
    const wide = [...document.querySelectorAll("body *")].filter((it) => it.getBoundingClientRect().right > innerWidth + 1);
    faults.push("wider than the window: " + wide.map((it) => it.tagName + "." + it.className + "#" + it.id).slice(0, 5).join());
  }
  const unnamed = [...document.querySelectorAll("svg[role=img], progress, button, a, table")].filter((it) =>
    !(it.textContent.trim() || it.getAttribute("aria-labelledby")));
  return faults.concat(unnamed.map((it) => "without a name: " + it.outerHTML.slice(0, 80)));
})()"##;

/// Looks at the page in both themes, on a desktop and on a phone. `SCREENSHOTS` names a folder for pictures.
fn look(chromium: &mut Chromium, site: &Site, state: &str) {
    chromium.open(&site.url());
    for (screen, width, height) in [("desktop", 1280, 900), ("tablet", 800, 1000), ("phone", 360, 740)] {
        for theme in ["light", "dark"] {
            chromium.show(width, height, theme);
            let faults = chromium.evaluate(FAULTS);
            assert_eq!(faults, json!([]), "{state}, {screen}, {theme}");
            if let Some(folder) = std::env::var_os("SCREENSHOTS") {
                let file = format!("{state}-{screen}-{theme}.png");
                chromium.screenshot(&std::path::Path::new(&folder).join(file));
            }
        }
    }
    assert_eq!(chromium.problems, Vec::<String>::new(), "{state}");
    // The page refreshes itself, and its service ends now.
    chromium.open("about:blank");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_state_is_readable_in_both_themes_and_on_a_phone_and_breaks_no_policy() {
    let Some(mut chromium) = Chromium::start() else { return };
    look(&mut chromium, &Site::healthy().await, "healthy");
    look(&mut chromium, &Site::backfilling().await, "backfilling");
    look(&mut chromium, &Site::workos_down().await, "workos-down");
    look(&mut chromium, &Site::handler_failing().await, "handler-failing");
    look(&mut chromium, &Site::database_down().await, "database-down");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refresh_keeps_focus_and_place_announces_only_a_new_verdict_and_says_when_the_page_is_outdated() {
    let Some(mut chromium) = Chromium::start() else { return };
    let mut site = Site::healthy().await;
    chromium.show(360, 740, "light");
    chromium.open(&site.url());
    assert_eq!(chromium.evaluate("document.getElementById('pause').hidden"), json!(false), "the script has run");
    chromium.evaluate(
        "document.getElementById('chart-lag-summary').click(); document.getElementById('chart-lag-summary').focus();
        scrollTo(0, 400); window.old = document.getElementById('charts'); 0",
    );
    let before = chromium.evaluate("scrollY");
    chromium.until("the part is replaced", "document.getElementById('charts') !== window.old");
    let after = "[document.activeElement.id, document.getElementById('chart-lag-table').open, scrollY,
        document.getElementById('live').textContent]";
    assert_eq!(chromium.evaluate(after), json!(["chart-lag-summary", true, before, ""]), "focus, place and silence");
    site.lab.workos.set_api_faults(ApiFaults { error: 100, ..ApiFaults::default() });
    chromium.until(
        "the new verdict is announced",
        "document.getElementById('live').textContent === document.getElementById('headline').textContent",
    );
    assert_ne!(chromium.evaluate("document.getElementById('headline').textContent"), json!("In sync"));
    assert_eq!(chromium.evaluate("document.getElementById('icon').href.endsWith('ok.svg')"), json!(false));
    // A paused page stays as it is.
    chromium.evaluate("document.getElementById('pause').click(); 0");
    assert_eq!(chromium.evaluate("document.getElementById('pause').getAttribute('aria-pressed')"), json!("true"));
    assert_eq!(chromium.problems, Vec::<String>::new());
    site.served.kill();
    chromium.evaluate("document.getElementById('pause').click(); 0");
    chromium.until("the page says that it is outdated", "!document.getElementById('stale').hidden");
    assert_eq!(chromium.evaluate("document.getElementById('stale').textContent.includes('outdated')"), json!(true));
}
