// Additions to a page that works without JavaScript: live updates, filtering while typing, and interactive charts. All
// text is rendered on the server; see live.js for how updates arrive.

import { drawCurves } from "./curve.js";
import { follow } from "./live.js";

function filterWhileTyping() {
  const box = document.getElementById("q");
  const cards = document.getElementById("cards");
  if (!box || !cards) return () => {};
  const apply = () => {
    const words = box.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const card of cards.children) {
      card.hidden = !words.every((word) => card.dataset.find.includes(word));
      shown += card.hidden ? 0 : 1;
    }
    document.getElementById("no-match").hidden = shown > 0 || cards.children.length === 0;
  };
  box.addEventListener("input", apply);
  box.form.addEventListener("submit", (event) => event.preventDefault());
  box.form.querySelector("button").hidden = true;
  apply();
  return apply;
}

// Results and errors of a form are shown once: a reload requests the page itself.
const here = document.body.dataset.here;
if (location.pathname !== here || location.search.includes("done=")) history.replaceState(null, "", here);

const refilter = filterWhileTyping();
follow(() => {
  refilter();
  drawCurves();
});
drawCurves();
