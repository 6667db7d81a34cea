// Only a convenience: without it the page shows everything.
const box = document.querySelector("#filter");
box.hidden = false;
const groups = [...document.querySelectorAll(".group")].map((group) => ({
  group, open: group.open, heading: group.querySelector("summary").textContent,
  series: [...group.querySelectorAll(".cards > li")] }));
box.addEventListener("input", () => {
  const words = box.value.toLowerCase().split(/\s+/).filter(Boolean);
  for (const { group, open, heading, series } of groups) {
    let shown = 0;
    for (const item of series) {
      const text = (heading + " " + item.textContent).toLowerCase();
      item.hidden = !words.every((word) => text.includes(word));
      shown += !item.hidden;
    }
    group.hidden = !shown;
    group.open = words.length ? true : open;
  }
});
addEventListener("hashchange", () => {
  const target = document.getElementById(location.hash.slice(1));
  if (target?.matches("details")) target.open = true;
});
