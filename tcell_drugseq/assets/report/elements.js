// Elements whose text is never read as HTML, and numbers as a reader wants them.
  function make(tag, attributes = {}, ...inside) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...inside.filter((part) => part !== null && part !== undefined));
    return element;
  }
  const known = (value) => typeof value === "number";
  const number = (value, digits = 2) => known(value) ? value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits }).replace(/^-(?=0[.0]*$)/, "").replace("-", "−") : "–";
  const chance = (value) => !known(value) ? "–" : value < 0.0001 ? "< 0.0001" : value >= 0.1 ? value.toFixed(2) : String(Number(value.toPrecision(2)));
