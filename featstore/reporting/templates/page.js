for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const numeric = head.classList.contains("num");
    const now = head.getAttribute("aria-sort");
    // Names and places start at the top, scores at the highest.
    const down = now ? now === "ascending" : numeric && !/^(Place|Mean rank)$/.test(head.textContent);
    const value = row => numeric ? parseFloat(row.cells[column].dataset.v) : row.cells[column].textContent;
    const order = (a, b) => {
      const x = value(a), y = value(b);
      if (!numeric) return down ? y.localeCompare(x) : x.localeCompare(y);
      if (isNaN(x) || isNaN(y)) return isNaN(x) - isNaN(y);  // what is missing stays last
      return down ? y - x : x - y;
    };
    heads.forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    // Each group by itself, below its heading.
    for (const body of table.tBodies) body.append(...[...body.rows].filter(row => row.className !== "group").sort(order));
  }));
}
