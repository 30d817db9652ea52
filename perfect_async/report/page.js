"use strict";
{
  const cards = [...document.querySelectorAll(".card")];
  const form = document.querySelector(".find");
  const empty = document.querySelector(".empty");

  const filter = () => {
    const outcome = form.outcome.value;
    const words = form.text.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const card of cards) {
      const fits = (!outcome || card.dataset.outcome === outcome)
        && words.every((word) => card.dataset.search.includes(word));
      card.hidden = !fits;
      shown += fits;
    }
    form.shown.value = shown === cards.length ? "" : `${shown} of ${cards.length} shown`;
    empty.hidden = shown > 0;
  };
  form.addEventListener("input", filter);
  form.addEventListener("submit", (event) => event.preventDefault());

  // A link to a card that the filter hides shows all of them again.
  const reveal = () => {
    const card = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (card?.hidden) {
      form.reset();
      filter();
      card.scrollIntoView();
    }
  };
  addEventListener("hashchange", reveal);

  const move = (range, value) => {
    range.value = value;
    range.parentElement.style.setProperty("--at", `${range.value}%`);
  };
  const list = document.querySelector(".cards");
  list.addEventListener("input", (event) => {
    if (event.target.type === "range") move(event.target, event.target.value);
  });
  // A mouse moves the slider by being there; a finger drags it, so that the page still scrolls.
  list.addEventListener("pointermove", (event) => {
    if (event.target.type !== "range" || event.pointerType !== "mouse") return;
    const box = event.target.getBoundingClientRect();
    move(event.target, 100 * (event.clientX - box.left) / box.width);
  });

  // A timeline that is wider than the page follows the lines that are scrolled to.
  const chart = document.querySelector(".chart");
  const lines = chart ? [...chart.querySelectorAll("a")] : [];
  let top = 0;
  chart?.addEventListener("scroll", () => {
    if (chart.scrollTop === top || chart.scrollWidth <= chart.clientWidth) return;
    top = chart.scrollTop;
    const upper = chart.querySelector(".rows");
    const index = Math.round(top / upper.getBoundingClientRect().height * lines.length);
    const bar = lines[Math.min(index, lines.length - 1)].querySelector("rect:not(.hit)");
    const left = bar.getBoundingClientRect().left - upper.getBoundingClientRect().left;
    chart.scrollLeft = left - 0.05 * chart.clientWidth;
  });

  // A browser keeps what was typed when the page is loaded again.
  filter();
  for (const range of list.querySelectorAll("[type=range]")) move(range, range.value);
}
