"use strict";
// The page of a gallery.  data.js calls `gallery.start` with all that filters and cards need, see dag.gallery.data;
// details/{shard}.js call `gallery.details`, see dag.gallery.draw_shard.  What stands in the address behind # is all
// the state there is.  Nothing that comes from data is ever parsed as HTML.

const gallery = (() => {
  const PER_PAGE = 60;
  const SORTS = {
    image: "image",
    "iterations-most": "iterations, most first",
    "iterations-fewest": "iterations, fewest first",
    "p-most": "perceptibility, highest first",
    "p-fewest": "perceptibility, lowest first",
    "targets-most": "targets, most first",
    "targets-fewest": "targets, fewest first",
    "loss-most": "lost by the networks, most first",
    "loss-fewest": "lost by the networks, least first",
  };
  const FILTERS = ["source", "status", "class", "victim", "id", "sort"];
  const NO_STATUS = "none (not a source)";
  const byId = (id) => document.getElementById(id);
  const form = byId("filters");

  let data, images, perturbations; // as of data.js
  let found = []; // the examples that the filters leave, in order, each image * perturbations + perturbation
  const loaded = new Map(); // shard -> promise of its details

  // Elements

  function element(name, attributes = {}, ...children) {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.append(...children);
    return made;
  }

  function drawing(name, attributes = {}, ...children) {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.append(...children);
    return made;
  }

  /** One picture out of a file that holds rows and columns of pictures of one size. */
  function panel(i, source, alt, { columns = 1, column = 0, rows = 1, row = 0, map = false } = {}) {
    const picture = element("img", { src: source, alt, loading: "lazy", decoding: "async" });
    picture.style.cssText =
      `width:${100 * columns}%;height:${100 * rows}%;left:${-100 * column}%;top:${-100 * row}%`;
    if (map) picture.className = "map";
    const made = element("div", { class: "panel" }, picture);
    made.style.aspectRatio = `${images.width[i]} / ${images.height[i]}`;
    return made;
  }

  /**
   * Boxes over the image: rows x_min, y_min, x_max, y_max (the last pixel belongs to the box), class, and what
   * `describe` makes a text of.  The text goes to the first corner of the box where it is in the image and hides no other.
   */
  function withBoxes(made, i, rows, describe) {
    const taken = [];
    for (const row of rows) {
      const [left, right] = [row[0], row[2] + 1].map((x) => (100 * x) / images.width[i]);
      const [top, bottom] = [row[1], row[3] + 1].map((y) => (100 * y) / images.height[i]);
      const [name, colour] = data.classes[row[4]];
      const words = describe(name, row[5]);
      const [wide, high] = [3.4 * words.length, 10]; // about, in percent of a picture as small as they get
      const corners = ["", "right", "low", "right low"].map((corner) => {
        const [x, y] = [corner.includes("right") ? right - wide : left, corner.includes("low") ? bottom - high : top];
        const hidden = taken.filter(([a, b, c]) => x < a + c && a < x + wide && Math.abs(y - b) < high).length;
        return { corner, spot: [x, y, wide], cost: hidden + 2 * (x < 0 || x + wide > 100 || y < 0 || y + high > 100) };
      });
      const { corner, spot } = corners.reduce((best, one) => (one.cost < best.cost ? one : best));
      taken.push(spot);
      const text = element("span", { class: corner }, words);
      text.style.background = colour;
      text.style.color = ink(colour);
      const box = element("div", { class: "box" }, text);
      box.style.cssText =
        `border-color:${colour};left:${left}%;top:${top}%;width:${right - left}%;height:${bottom - top}%`;
      made.append(box);
    }
    return made;
  }

  function ink(colour) {
    const [red, green, blue] = [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
    return 0.299 * red + 0.587 * green + 0.114 * blue > 128 ? "#000" : "#fff";
  }

  const clean = (i) => `pictures/${images.shard[i]}/${images.number[i]}.webp`;
  const sheet = (i) => `pictures/${images.shard[i]}/${images.number[i]}.png`;
  const strip = (i, p) =>
    `pictures/${images.shard[i]}/${encodeURIComponent(perturbations[p].name)}/${images.number[i]}.webp`;

  // What is known of an example

  const imageOf = (example) => Math.floor(example / perturbations.length);
  const perturbationOf = (example) => example % perturbations.length;
  const example = (i, p) => i * perturbations.length + p;

  /** What a network recognises, in percent of what there is: on the clean image and on the perturbed one. */
  function recognised(i, p, victim) {
    const whole = data.victims[victim].task === "detection" ? images.objects[i] : 100;
    const before = images.clean[victim][i];
    const after = perturbations[p].seen[victim][i];
    if (before === null || after === null || !whole) return null;
    return [(100 * before) / whole, (100 * after) / whole];
  }

  /** Percentage points that networks, or a single one, recognise less; NaN where nothing can be said. */
  function loss(i, p, only) {
    const victims = only === null ? Object.keys(perturbations[p].seen) : [only];
    let [sum, count] = [0, 0];
    for (const victim of victims) {
      const values = perturbations[p].seen[victim] ? recognised(i, p, victim) : null;
      if (values && values[0] > 0) {
        sum += values[0] - values[1];
        count += 1;
      }
    }
    return sum / count;
  }

  function measure(i, p, victim) {
    const [before, after] = [images.clean[victim][i], perturbations[p].seen[victim][i]];
    if (before === null || after === null) return "not annotated, or nothing to recognise";
    return data.victims[victim].task === "detection"
      ? `${before} → ${after} of ${images.objects[i]} objects found`
      : `${before} → ${after} % of object pixels right`;
  }

  function facts(i, p) {
    const known = perturbations[p];
    const listed = [["p", `${known.p[i].toFixed(2)} · 10⁻³`], ["max |r|", known.largest[i].toFixed(1)]];
    if (known.status[i] < 0) return listed;
    return [
      ["status", data.statuses[known.status[i]]],
      ["iterations", known.iterations[i]],
      ["targets", known.targets[i]],
      ...listed,
    ];
  }

  // State

  function state() {
    const known = new URLSearchParams(location.hash.slice(1));
    return Object.fromEntries([...FILTERS, "page", "image", "with"].map((key) => [key, known.get(key) ?? ""]));
  }

  function address(changes) {
    const known = Object.entries({ ...state(), ...changes }).filter(([, value]) => value !== "");
    return "#" + new URLSearchParams(known);
  }

  function go(changes, replace = false) {
    if (replace) history.replaceState(null, "", address(changes));
    else history.pushState(null, "", address(changes));
    show();
  }

  // Filter and order

  function search(wanted) {
    const status = wanted.status === "" ? null : data.statuses.indexOf(wanted.status); // -1: of sums
    const label = wanted.class === "" ? null : Number(wanted.class);
    const name = wanted.id.toLowerCase();
    const victim = victimOf(wanted);
    const shown = [...perturbations.keys()].filter(
      (p) =>
        (wanted.source === "" || perturbations[p].name === wanted.source) &&
        (victim === null || perturbations[p].seen[victim]),
    );
    const left = [];
    for (let i = 0; i < images.id.length; i++) {
      if (label !== null && !images.classes[i].includes(label)) continue;
      if (name && !images.id[i].toLowerCase().includes(name)) continue;
      for (const p of shown) if (status === null || perturbations[p].status[i] === status) left.push(example(i, p));
    }
    const [key, direction] = wanted.sort.split("-");
    if (!direction) return left;
    const valueOf = (one) => {
      const [i, p] = [imageOf(one), perturbationOf(one)];
      return key === "loss" ? loss(i, p, victim) : (perturbations[p][key][i] ?? NaN);
    };
    const values = new Map(left.map((one) => [one, valueOf(one)]));
    const sign = direction === "most" ? -1 : 1;
    return left.sort((a, b) => {
      const [x, y] = [values.get(a), values.get(b)];
      if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y) || a - b; // what has none is last
      return sign * (x - y) || a - b;
    });
  }

  function victimOf(wanted) {
    const victim = data.victims.findIndex((one) => one.name === wanted.victim);
    return victim < 0 ? null : victim;
  }

  // Cards

  function card(one, wanted) {
    const [i, p] = [imageOf(one), perturbationOf(one)];
    const known = perturbations[p];
    const label = `${images.id[i]} · ${known.label}`;
    const made = element("a", { class: "card", href: address({ image: images.id[i], with: known.name }) });
    made.append(
      element("h3", {}, label),
      element(
        "div",
        { class: "pair" },
        panel(i, strip(i, p), `Image ${images.id[i]}, perturbed by ${known.label}`, { columns: 2 }),
        panel(i, strip(i, p), `The perturbation, magnified ${data.magnify} times`, { columns: 2, column: 1 }),
      ),
    );
    const lines = element("div");
    const values = Object.fromEntries(facts(i, p));
    if (known.status[i] >= 0)
      lines.append(
        element("p", {}, element("strong", {}, values.status), `, ${values.iterations} iterations`),
        element("p", {}, `${values.targets} targets`),
      );
    lines.append(element("p", {}, `p ${values.p}, max |r| ${values["max |r|"]}`));
    const lost = loss(i, p, victimOf(wanted));
    if (!Number.isNaN(lost)) lines.append(element("p", {}, `lost: ${lost.toFixed(0)} points`));
    const below = element("div", { class: "below" }, lines, element("div", {}, bars(i, p)));
    if (known.curve[i]) below.lastChild.prepend(smallCurve(known.curve[i]));
    made.append(below);
    return made;
  }

  function bars(i, p) {
    const victims = Object.keys(perturbations[p].seen);
    const made = drawing("svg", { width: 96, height: 34, viewBox: "0 0 96 34", role: "img" });
    const width = Math.min(12, 96 / victims.length);
    made.append(drawing("path", { d: "M0 33.5H96", stroke: "#999" }));
    const texts = victims.map((victim, k) => {
      const values = recognised(i, p, victim);
      const text = `${data.victims[victim].label}: ${measure(i, p, victim)}`;
      if (values) {
        const [before, after] = values.map((value) => (30 * value) / 100);
        const x = 96 - width * (victims.length - k);
        made.append(
          drawing("rect", { x, y: 33 - before, width: width - 1.5, height: before, fill: "#b9cfe0" }),
          drawing("rect", { x, y: 33 - after, width: width - 1.5, height: after, fill: "#08415c" }),
          drawing("rect", { x, y: 0, width, height: 34, fill: "transparent" }, drawing("title", {}, text)),
        );
      }
      return text;
    });
    made.setAttribute("aria-label", texts.join("; "));
    return made;
  }

  function smallCurve(digits) {
    const points = [...digits].map((digit, k) => {
      const x = 1 + (94 * k) / Math.max(digits.length - 1, 1);
      return `${x.toFixed(1)},${(31 - (30 * parseInt(digit, 36)) / 35).toFixed(1)}`;
    });
    const made = drawing("svg", { width: 96, height: 34, viewBox: "0 0 96 34", role: "img" });
    made.setAttribute("aria-label", "Active targets from the start to the end of the attack");
    made.append(
      drawing("path", { d: "M.5 0V32.5H96", fill: "none", stroke: "#999" }),
      drawing("polyline", { points: points.join(" "), fill: "none", stroke: "#c04000", "stroke-width": 1.5 }),
    );
    return made;
  }

  function showCards(wanted) {
    const pages = Math.max(1, Math.ceil(found.length / PER_PAGE));
    const page = Math.min(Math.max(1, Number(wanted.page) || 1), pages);
    const shown = new Set(found.map(imageOf)).size;
    byId("count").textContent =
      `${shown} of ${images.id.length} images, ` +
      `${found.length} of ${images.id.length * perturbations.length} examples (an image with a perturbation)`;
    byId("cards").replaceChildren(
      ...found.slice((page - 1) * PER_PAGE, page * PER_PAGE).map((one) => card(one, wanted)),
    );
    byId("page").textContent = `page ${page} of ${pages}`;
    byId("before").disabled = page === 1;
    byId("after").disabled = page === pages;
    byId("before").onclick = () => go({ page: page > 2 ? String(page - 1) : "" });
    byId("after").onclick = () => go({ page: String(page + 1) });
  }

  // One example

  function load(shard) {
    if (!loaded.has(shard)) {
      let arrived;
      const promise = new Promise((resolve, reject) => {
        arrived = resolve;
        const script = element("script", { src: `details/${shard}.js` });
        script.onerror = () => reject(new Error(`details/${shard}.js is missing: run the workflow again`));
        document.head.append(script);
      });
      promise.arrived = arrived;
      loaded.set(shard, promise);
    }
    return loaded.get(shard);
  }

  async function showExample(i, p) {
    const dialog = byId("detail");
    byId("name").textContent = `Image ${images.id[i]}`;
    byId("other").replaceChildren(
      ...perturbations.map((known, k) => {
        const option = element("option", { value: known.name }, known.label);
        option.selected = k === p;
        return option;
      }),
    );
    const place = found.indexOf(example(i, p));
    for (const [id, step] of [["previous", -1], ["next", 1]]) {
      const other = place < 0 ? undefined : found[place + step];
      byId(id).disabled = other === undefined;
      byId(id).onclick = () => openExample(other);
    }
    if (!dialog.open) dialog.showModal();
    const shown = dialog.dataset.shown = `${i} ${p}`;
    try {
      const details = await load(images.shard[i]);
      if (dialog.open && dialog.dataset.shown === shown) byId("body").replaceChildren(...body(i, p, details));
    } catch (error) {
      byId("body").replaceChildren(element("p", { class: "notice" }, error.message));
    }
    dialog.scrollTop = 0;
  }

  function openExample(one) {
    if (one !== undefined) go({ image: images.id[imageOf(one)], with: perturbations[perturbationOf(one)].name }, true);
  }

  function body(i, p, details) {
    const known = perturbations[p];
    const number = images.number[i];
    const about = details.images[number];
    const made = details.perturbations[known.name][number];
    const segmenters = data.victims.flatMap((victim, k) => (victim.task === "segmentation" ? [k] : []));
    const cell = { columns: 1 + segmenters.length, rows: 1 + perturbations.length, map: true };
    const captioned = (content, caption) => element("figure", {}, content, element("figcaption", {}, caption));
    const truthOf = (name, difficult) => (difficult ? `${name} (difficult)` : name);
    const scored = (name, score) => `${name} ${score.toFixed(2)}`;
    const says = (rows) => rows.map((row) => data.classes[row[4]][0]).join(", ") || "nothing";

    const pictures = element("div", { class: "row" });
    pictures.append(
      captioned(panel(i, clean(i), `Image ${images.id[i]}`), "image"),
      captioned(panel(i, strip(i, p), "The perturbed image", { columns: 2 }), "perturbed image"),
      captioned(
        panel(i, strip(i, p), "The perturbation", { columns: 2, column: 1 }),
        `perturbation × ${data.magnify} (grey: 0)`,
      ),
    );
    if (about.truth)
      pictures.append(
        captioned(
          withBoxes(panel(i, clean(i), `True objects: ${says(about.truth)}`), i, about.truth, truthOf),
          "true objects",
        ),
      );
    if (images.labelled[i])
      pictures.append(captioned(panel(i, sheet(i), "True label map", cell), "true label map"));

    const list = element("dl", { class: "facts" });
    for (const [name, value] of facts(i, p))
      list.append(element("div", {}, element("dt", {}, name), element("dd", {}, String(value))));
    pictures.append(
      made.active
        ? captioned(curve(made.active, known.targets[i]), "active targets against iterations (top: all targets)")
        : summands(i, known),
    );
    const parts = [list, pictures];
    const sources = known.sources.map((source) => source.split("@")[0]); // without the variant of the attack

    for (const task of ["detection", "segmentation"]) {
      const victims = Object.keys(known.seen).filter((victim) => data.victims[victim].task === task);
      if (!victims.length) continue;
      const networks = element("div", { class: "networks" });
      for (const victim of victims) {
        const { name, label } = data.victims[victim];
        const column = 1 + segmenters.indexOf(Number(victim));
        const [before, after] = [["clean", clean(i), {}, about.clean, 0],
          ["perturbed", strip(i, p), { columns: 2 }, made.seen, 1 + p]].map(([when, source, part, boxes, row]) =>
          task === "detection"
            ? withBoxes(panel(i, source, `${label} on the ${when} image: ${says(boxes[name])}`, part), i, boxes[name], scored)
            : panel(i, sheet(i), `Label map of ${label} on the ${when} image`, { ...cell, column, row }));
        networks.append(
          element(
            "figure",
            { class: "network" },
            element("div", { class: "pair" }, before, after),
            element(
              "figcaption",
              {},
              element("strong", {}, label),
              `${sources.includes(name) ? " (a source)" : ""}: ${measure(i, p, victim)}`,
            ),
          ),
        );
      }
      const heading = task === "detection" ? "Detectors" : "Segmentation networks";
      parts.push(element("h3", {}, `${heading}: clean image | perturbed image`), networks);
    }
    parts.push(legend(), element("p", { class: "hint" }, measures()));
    const keys = "Keys: ← and → go through the examples that are selected, Shift with them through the perturbations.";
    parts.push(element("p", { class: "hint" }, keys));
    return parts;
  }

  function curve(active, targets) {
    if (!active.length) return element("p", {}, "There were no targets.");
    const dots = active.length > 60 ? [] : [...active.keys()];
    const [left, right, top, bottom] = [44, 250, 12, 158];
    const last = Math.max(active.length - 1, 1);
    const x = (k) => left + ((right - left) * k) / last;
    const y = (count) => bottom - ((bottom - top) * count) / Math.max(targets, 1);
    const made = drawing("svg", { class: "curve", viewBox: "0 0 260 180", role: "img" });
    made.setAttribute(
      "aria-label",
      `${active[0]} of ${targets} targets active at the start, ${active.at(-1)} after ${active.length - 1} iterations`,
    );
    const text = (content, at) => made.append(drawing("text", at, content));
    made.append(
      drawing("path", { d: `M${left} ${top}V${bottom}H${right}`, fill: "none", stroke: "#888" }),
      drawing("polyline", {
        points: active.map((count, k) => `${x(k).toFixed(1)},${y(count).toFixed(1)}`).join(" "),
        fill: "none", stroke: "#c04000", "stroke-width": 2,
      }),
      ...dots.map((k) => drawing("circle", { cx: x(k).toFixed(1), cy: y(active[k]).toFixed(1), r: 2, fill: "#c04000" })),
    );
    text(String(targets), { x: left - 6, y: top + 4, "text-anchor": "end" });
    text("0", { x: left - 6, y: bottom + 4, "text-anchor": "end" });
    text("0", { x: left, y: bottom + 16, "text-anchor": "middle" });
    text(String(active.length - 1), { x: right, y: bottom + 16, "text-anchor": "middle" });
    return made;
  }

  /** A sum has no curve; those of its summands are a click away. */
  function summands(i, known) {
    const links = perturbations
      .filter(({ name }) => known.sources.includes(name))
      .map(({ name, label }) =>
        element("li", {}, element("a", { href: address({ image: images.id[i], with: name }) }, label)));
    const text = "Made from other perturbations, without an attack of its own" + (links.length ? ":" : ".");
    return element("figcaption", {}, text, element("ul", {}, ...links));
  }

  const measures = () =>
    "Segmentation: share of the pixels of objects, neither background nor void, that get their class. " +
    "Detection: objects, not difficult ones, that a detection of their class with a score of at least " +
    `${data.score} overlaps with an IoU of at least ${data.overlap}; detections with a lower score are not drawn. ` +
    "Lost: the mean of the differences between clean and perturbed, in percentage points, over the networks that " +
    "recognised something on the clean image.";

  function legend() {
    const made = element("div", { class: "legend", role: "group", "aria-label": "Colours of the classes" });
    for (const [name, colour] of data.coloured.map((label) => data.classes[label])) {
      const swatch = element("i");
      swatch.style.background = colour;
      made.append(element("span", {}, swatch, name));
    }
    return made;
  }

  // The page

  let last = null;

  function show() {
    const wanted = state();
    const filters = JSON.stringify([...FILTERS, "page"].map((key) => wanted[key]));
    if (filters !== last) {
      for (const key of FILTERS) if (form.elements[key].value !== wanted[key]) form.elements[key].value = wanted[key];
      found = search(wanted);
      showCards(wanted);
      last = filters;
    }
    const i = images.id.indexOf(wanted.image);
    const p = perturbations.findIndex(({ name }) => name === wanted.with);
    if (wanted.image !== "" && i >= 0 && p >= 0) showExample(i, p);
    else if (byId("detail").open) byId("detail").close();
  }

  function options(name, pairs) {
    form.elements[name].replaceChildren(...pairs.map(([value, text]) => element("option", { value }, text)));
  }

  function start(content) {
    data = content;
    ({ images, perturbations } = data);
    for (const key of ["description", "experiment", "notice"]) byId(key).textContent = data.about[key];
    for (const place of document.querySelectorAll(".magnify")) place.textContent = data.magnify;
    for (const place of document.querySelectorAll(".measures")) place.textContent = measures();
    document.querySelector("details .legend").replaceWith(legend());

    const statuses = data.statuses.map((status) => [status, status]);
    if (perturbations.some(({ status }) => status.includes(-1))) statuses.push(["none", NO_STATUS]);
    const classes = [...new Set(images.classes.flat())].sort((a, b) => a - b);
    options("source", [["", "all"], ...perturbations.map(({ name, label }) => [name, label])]);
    options("status", [["", "all"], ...statuses]);
    options("class", [["", "all"], ...classes.map((label) => [String(label), data.classes[label][0]])]);
    options("victim", [["", "all"], ...data.victims.map(({ name, label }) => [name, label])]);
    options("sort", Object.entries(SORTS).map(([value, text]) => [value === "image" ? "" : value, text]));

    const refine = () =>
      go({ ...Object.fromEntries(FILTERS.map((key) => [key, form.elements[key].value])), page: "" }, true);
    form.addEventListener("input", refine);
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("reset", () => setTimeout(refine));
    byId("other").addEventListener("change", (event) => go({ with: event.target.value }, true));
    byId("close").addEventListener("click", () => byId("detail").close());
    byId("detail").addEventListener("close", () => {
      if (state().image !== "") go({ image: "", with: "" });
    });
    document.addEventListener("keydown", (event) => {
      if (!byId("detail").open || event.target.closest("select, input") || event.altKey || event.ctrlKey) return;
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!step) return;
      event.preventDefault();
      const { selectedIndex, options } = byId("other");
      const other = options[selectedIndex + step];
      if (!event.shiftKey) byId(step < 0 ? "previous" : "next").click();
      else if (other) go({ with: other.value }, true);
    });
    addEventListener("hashchange", show);
    show();
  }

  return { start, details: (content) => loaded.get(content.shard).arrived(content) };
})();
