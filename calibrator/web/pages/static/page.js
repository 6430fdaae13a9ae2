// What scripts add to a page that is complete without them: it stays young, its list can be filtered while typing, and
// the curves can be read with a pointer. Words are made on the server only; see live.js for how they get here.

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
    document.getElementById("none-fits").hidden = shown > 0 || cards.children.length === 0;
  };
  box.addEventListener("input", apply);
  box.form.addEventListener("submit", (event) => event.preventDefault());
  box.form.querySelector("button").hidden = true;
  apply();
  return apply;
}

// What a form has just done, or why it was refused, is said once: a reload asks for the page itself.
const here = document.body.dataset.here;
if (location.pathname !== here || location.search.includes("done=")) history.replaceState(null, "", here);

const refilter = filterWhileTyping();
follow(() => {
  refilter();
  drawCurves();
});
drawCurves();
