"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const main = document.getElementById("view");
  const said = data.settings;

  // --- Building blocks

  /** An element: el("p", {class: "soft", onclick: f}, "text", child). Attributes that are functions are listeners. */
  function el(name, attributes = {}, ...children) {
    const svg = ["svg", "circle", "polyline", "line", "text", "path", "g", "title"].includes(name);
    const made = svg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) {
      if (typeof value === "function") made.addEventListener(key.slice(2), value);
      else if (value === true) made.setAttribute(key, "");
      else if (value !== false && value !== null && value !== undefined) made.setAttribute(key, value);
    }
    made.append(...children.filter((child) => child !== null && child !== undefined));
    return made;
  }

  const source = (file) => data.sources[file] || file;
  const round = (x, digits = 3) => Number(x.toFixed(digits));

  /** Pictures that lie on each other, loaded and decoded at once, so that showing another one costs nothing. */
  function stack(files, name, sharp = false) {
    const box = el("div", {class: sharp ? "stack sharp" : "stack"});
    const images = files.map((file) => {
      const image = el("img", {src: source(file), alt: "", decoding: "sync"});
      image.decode().catch(() => undefined);
      return image;
    });
    box.append(...images);
    const first = images[0];
    const shape = () => (box.style.aspectRatio = `${first.naturalWidth} / ${first.naturalHeight}`);
    if (first) first.complete && first.naturalWidth ? shape() : first.addEventListener("load", shape);
    let now = -1;
    return {
      box,
      show(index, words) {
        if (now >= 0) { images[now].classList.remove("now"); images[now].alt = ""; }
        now = index;
        if (images[now]) { images[now].classList.add("now"); images[now].alt = `${name}: ${words}`; }
      },
    };
  }

  function slider(label, {min = 0, max, step = 1, value, oninput, text}) {
    const input = el("input", {type: "range", min, max, step, "aria-label": label, oninput: () => tell()});
    input.value = value;
    const tell = () => {
      input.setAttribute("aria-valuetext", text(Number(input.value)));
      oninput(Number(input.value));
    };
    return {input, set: (v) => { input.value = v; tell(); }, tell};
  }

  /** How a view ends: a scene, to copy, to keep, or to hand to the page around this one. */
  function sendPanel(title = "Send to scene") {
    const area = el("textarea", {readonly: true, "aria-label": "Scene JSON", spellcheck: "false"});
    const status = el("p", {role: "status", class: "soft"});
    const base = el("p", {class: "soft"});
    let current = {scene: {}, prompt: "", settings: {}};
    const around = (() => { try { return window.parent !== window && window.parent.masknoiseTakeScene; } catch { return null; } })();
    const copy = async () => {
      try { await navigator.clipboard.writeText(area.value); }
      catch { area.select(); document.execCommand("copy"); }
      status.textContent = "Copied.";
    };
    const save = () => {
      const url = URL.createObjectURL(new Blob([area.value + "\n"], {type: "application/json"}));
      const link = el("a", {href: url, download: "scene.json"});
      link.click();
      setTimeout(() => URL.revokeObjectURL(url), 1000);
      status.textContent = "Saved as scene.json.";
    };
    const send = () => {
      around(JSON.stringify(current.scene), current.prompt, current.settings);
      status.textContent = "Sent to the scene.";
    };
    const box = el("section", {class: "card", "aria-label": title}, el("h2", {}, title), base,
      el("div", {class: "bar"},
        around ? el("button", {type: "button", class: "first send", onclick: send}, "Send to scene") : null,
        el("button", {type: "button", onclick: copy}, "Copy scene"),
        el("button", {type: "button", onclick: save}, "Save scene.json")),
      area, status);
    return {
      box,
      /** settings: of the image, those that are to change, by the names of a request. */
      offer(scene, prompt, words = "", settings = {}) {
        current = {scene, prompt, settings};
        area.value = JSON.stringify(scene);
        base.textContent = [words, prompt ? `The image's own prompt: ${prompt}` : "No prompt of the image's own."].join(" ").trim();
        status.textContent = "";
      },
    };
  }

  /** The settings that a view's pictures were made with, by the names of a request. */
  function made(changes = {}) {
    const size = said.size ? {height: said.size[0], width: said.size[1]} : {};
    return {seed: said.seed, steps: said.steps, guidance_scale: said.guidance_scale, negative_prompt: said.negative_prompt, ...size, ...changes};
  }

  const whole = {kind: "rect"};
  const onePrompt = (prompt) => ({concepts: [{prompt, mask: whole}]});

  function card(title, ...children) {
    return el("section", {class: "card", "aria-label": title}, el("h2", {}, title), ...children);
  }

  // --- Journey

  function journey() {
    const steps = data.steps;
    if (!steps.length) return main.append(el("p", {}, "There are no steps."));
    const views = [["x0", "The picture it is heading for"], ["x_t", "What it has"], ["pca", "The same latent by its principal components"]];
    const stacks = views.map(([name, words]) => [stack(steps.map((step) => step[name]), words, name === "pca"), words]);
    const path = pathFigure(steps);
    const status = el("p", {role: "status"});
    const last = steps.length - 1;
    const text = (i) => i === last && !data.interrupted
      ? `The end: the picture itself`
      : `Step ${i + 1} of ${data.interrupted ? steps.length : last}, ${round(steps[i].sigma, 2)} of noise for each part of signal`;
    const control = slider("Step", {max: last, value: last, text, oninput: (i) => {
      for (const [one] of stacks) one.show(i, text(i));
      path.show(i);
      status.textContent = text(i);
    }});
    const play = playButton(control, last);
    const send = sendPanel();
    send.offer(data.scene || onePrompt(said.prompt), data.scene ? said.prompt : "", "The scene that this was the journey of, and its settings.", made());
    main.append(
      card("Steps", control.input, el("div", {class: "bar"}, play, ...data.animation.map((file) => el("a", {class: "button", href: source(file)}, "The animation")))),
      status,
      el("div", {class: "columns"},
        el("div", {class: "figures"}, ...stacks.map(([one, words]) => el("figure", {}, one.box, el("figcaption", {}, words)))),
        el("div", {}, path.box, send.box)));
    control.tell();
  }

  function playButton(control, last) {
    let timer = 0;
    const stop = () => { clearInterval(timer); timer = 0; button.textContent = "Play"; };
    const button = el("button", {type: "button", onclick: () => {
      if (timer) return stop();
      if (Number(control.input.value) >= last) control.set(0);
      button.textContent = "Pause";
      timer = setInterval(() => {
        const next = Number(control.input.value) + 1;
        if (next > last) return stop();
        control.set(next);
      }, 160);
    }}, "Play");
    return button;
  }

  function pathFigure(steps) {
    const sides = ["x0", "x_t"].map((name) => steps.map((step) => step.path[name]));
    const all = sides.flat();
    const [left, right] = [Math.min(...all.map((p) => p[0])), Math.max(...all.map((p) => p[0]))];
    const [low, high] = [Math.min(...all.map((p) => p[1])), Math.max(...all.map((p) => p[1]))];
    const scale = Math.min(300 / (right - left || 1), 220 / (high - low || 1));
    const at = ([x, y]) => [20 + (x - left) * scale, 240 - (y - low) * scale];
    const line = (side, name) => el("polyline", {class: `path-${name}`, points: side.map((p) => at(p).map((v) => round(v, 1)).join(",")).join(" ")});
    const marks = sides.map((_, i) => el("circle", {r: 6, fill: i ? "var(--mark)" : "var(--accent)"}));
    const share = Math.round(100 * (data.explained[0] + data.explained[1]));
    const svg = el("svg", {viewBox: "0 0 340 260", role: "img", "aria-label": "Both paths in the plane that holds most of them"},
      line(sides[0], "x0"), line(sides[1], "x_t"), ...marks);
    const box = card("The path", svg,
      el("p", {class: "soft"}, `Solid: where it is heading. Dashed: where it is. Of all latents on the way, this plane holds ${share} % of the variance.`));
    return {box, show(i) {
      marks.forEach((mark, side) => {
        const [x, y] = at(sides[side][i]);
        mark.setAttribute("cx", x);
        mark.setAttribute("cy", y);
      });
    }};
  }

  // --- Between

  function between() {
    const stops = data.stops;
    if (!stops.length) return main.append(el("p", {}, "There are no stops."));
    const pictures = stack(stops.map((stop) => stop.file), "On the way");
    const status = el("p", {role: "status"});
    const near = el("ul", {class: "plain-list"});
    const far = (t) => t < 0 || t > 1;
    const low = stops[0].t, high = stops[stops.length - 1].t;
    const nearestStop = (t) => stops.reduce((best, stop, i) => (Math.abs(stop.t - t) < Math.abs(stops[best].t - t) ? i : best), 0);
    const words = (t) => {
      const a = Math.round((1 - t) * 100), b = Math.round(t * 100);
      return `${a} % ${data.from}, ${b} % ${data.to}` + (far(t) ? ": extrapolation, beyond the two" : "");
    };
    const control = slider("How far from the first to the second", {
      min: low, max: high, step: 0.001, value: Math.max(low, Math.min(0.5, high)),
      text: (t) => words(stops[nearestStop(t)].t),
      oninput: (t) => {
        const i = nearestStop(t);
        pictures.show(i, words(stops[i].t));
        status.textContent = words(stops[i].t);
        status.className = far(stops[i].t) ? "far" : "";
        near.replaceChildren(...stops[i].near.map((one) => el("li", {}, `${one.prompt} `, el("span", {class: "soft"}, round(one.distance, 2)))));
      },
    });
    control.input.addEventListener("keydown", (event) => {
      const move = {ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1}[event.key];
      if (!move) return;
      event.preventDefault();
      const next = Math.max(0, Math.min(stops.length - 1, nearestStop(Number(control.input.value)) + move));
      control.set(stops[next].t);
    });
    const share = (t) => `${(100 * (t - low)) / (high - low || 1)}%`;
    const ticks = el("div", {class: "ticks", "aria-hidden": "true"}, ...stops.map((stop) =>
      el("i", {class: stop.t === 0 || stop.t === 1 ? "end" : "", style: `left: ${share(stop.t)}`})));
    const send = sendPanel();
    const asKeyframes = () => send.offer(data.keyframes, "", "An animation from one to the other and back.");
    const asGradient = () => send.offer(data.passage.scene, data.passage.base, "The passage across one picture.");
    const asPoint = () => {
      const t = stops[nearestStop(Number(control.input.value))].t;
      send.offer({concepts: [{prompt: data.to, weight: t, mask: whole}]}, data.from, "This very place.");
    };
    const crossing = el("div", {class: "figures"});
    const show = (file, caption, ...more) => file && crossing.append(el("figure", {}, el("img", {src: source(file), alt: caption, style: "width: 100%"}), el("figcaption", {}, caption, ...more)));
    show(data.passage.file, "No bridge");
    for (const bridge of data.bridges) {
      const use = () => { send.offer(bridge.scene, data.passage.base, `By way of ${bridge.prompt}.`); send.box.scrollIntoView({block: "nearest"}); };
      const go = () => control.set(bridge.t);
      show(bridge.file, bridge.prompt, el("br"),
        `at ${Math.round(bridge.t * 100)} %, ${round(bridge.distance, 2)} away `, el("div", {class: "bar"},
          el("button", {type: "button", onclick: use, "aria-label": `Use the bridge ${bridge.prompt}`}, "Use"),
          el("button", {type: "button", onclick: go, "aria-label": `Show the place nearest to ${bridge.prompt}`}, "Show place")));
    }
    main.append(
      el("div", {class: "columns"},
        el("div", {}, el("div", {class: "card"}, pictures.box, control.input, ticks, status,
          el("p", {class: "soft"}, `${stops.length} pictures; evenness from 0 to 100 %: ${data.evenness}`))),
        el("div", {},
          card("Named prompts near here", near, el("p", {class: "soft"}, "Distances are parts of the way between the two.")),
          el("div", {class: "bar"},
            el("button", {type: "button", onclick: asKeyframes}, "As keyframes"),
            el("button", {type: "button", onclick: asGradient}, "As a gradient"),
            el("button", {type: "button", onclick: asPoint}, "This place")),
          send.box)),
      card("Bridges", el("p", {class: "soft"}, "A bridge is a concept whose mask is where the other two fade, so that the passage goes by way of something that has a name."),
        data.bridges.length ? crossing : el("p", {}, "None were found.")));
    control.tell();
    asGradient();
  }

  // --- Map

  const COLOURS = ["#3b7dd8", "#2f9e5b", "#c2571a", "#8b5cc7", "#c23a6b", "#138a93", "#8a7a12", "#5a6b7d", "#b04ac0", "#6f9a1f", "#cf8b00", "#2c5aa0", "#9b4a3c", "#4f8f7a", "#a03a3a", "#667f2b", "#7a5aa8"];

  /** The three prompts whose blend lies at (x, y), and their weights: Plane.weights of the library. */
  function weightsAt(x, y) {
    let best = null, most = -Infinity;
    for (const triangle of data.triangles) {
      const [a, b, c] = triangle.map((i) => data.points[i]);
      const area = (b.x - a.x) * (c.y - a.y) - (b.y - a.y) * (c.x - a.x);
      const v = ((x - a.x) * (c.y - a.y) - (y - a.y) * (c.x - a.x)) / area;
      const w = ((b.x - a.x) * (y - a.y) - (b.y - a.y) * (x - a.x)) / area;
      const least = Math.min(1 - v - w, v, w);
      if (least > most) { most = least; best = {points: triangle, weights: [1 - v - w, v, w]}; }
    }
    return best;
  }

  function placeOf(points, weights) {
    return points.reduce(([x, y], i, n) => [x + weights[n] * data.points[i].x, y + weights[n] * data.points[i].y], [0, 0]);
  }

  /** The smallest change of weights that moves a blend of these prompts to (x, y); null where they cannot get there. */
  function moved(points, weights, x, y) {
    const rows = [points.map((i) => data.points[i].x), points.map((i) => data.points[i].y), points.map(() => 1)];
    const now = placeOf(points, weights);
    const sum = weights.reduce((a, b) => a + b, 0);
    const wanted = [x - now[0], y - now[1], 1 - sum];
    const gram = rows.map((r) => rows.map((s) => r.reduce((total, value, n) => total + value * s[n], 0)));
    const solution = solved(gram, wanted);
    return solution && weights.map((weight, n) => weight + rows.reduce((total, row, k) => total + row[n] * solution[k], 0));
  }

  function solved(matrix, right) {
    const m = matrix.map((row, i) => [...row, right[i]]);
    for (let i = 0; i < 3; i++) {
      const pivot = [i, i + 1, i + 2].filter((k) => k < 3).reduce((a, b) => (Math.abs(m[b][i]) > Math.abs(m[a][i]) ? b : a));
      if (Math.abs(m[pivot][i]) < 1e-12) return null;
      [m[i], m[pivot]] = [m[pivot], m[i]];
      for (let k = 0; k < 3; k++) {
        if (k === i) continue;
        const factor = m[k][i] / m[i][i];
        for (let j = i; j < 4; j++) m[k][j] -= factor * m[i][j];
      }
    }
    return m.map((row, i) => row[3] / row[i]);
  }

  function promptMap() {
    const points = data.points;
    const groups = [...new Set(points.map((p) => p.group))];
    const colour = (p) => COLOURS[groups.indexOf(p.group) % COLOURS.length];
    const heard = points.filter((p) => p.heard);
    const xs = heard.map((p) => p.x), ys = heard.map((p) => p.y);
    const bounds = {left: Math.min(...xs), right: Math.max(...xs), low: Math.min(...ys), high: Math.max(...ys)};
    const extent = Math.max(bounds.right - bounds.left, bounds.high - bounds.low);
    const state = {points: [], weights: [], x: 0, y: 0, zoom: 1, cx: (bounds.left + bounds.right) / 2, cy: (bounds.low + bounds.high) / 2};
    let width = 600, height = 560;

    const mesh = el("path", {class: "mesh"});
    const lead = el("path", {class: "lead"});
    const dots = points.map((p, i) => el("circle", {r: p.heard ? 4 : 2.5, fill: colour(p), class: p.heard ? "" : "silent", "data-i": i}));
    const labels = el("g");
    const mark = el("circle", {r: 9, class: "point"});
    const svg = el("svg", {tabindex: 0, role: "application", "aria-roledescription": "map", "aria-describedby": "keys",
      "aria-label": "Map of prompts"}, mesh, lead, ...dots, labels, mark);
    const hover = el("div", {class: "hover", hidden: true});
    const status = el("p", {role: "status"});
    const weightRows = el("div");
    const keep = el("input", {type: "checkbox", id: "keep"});
    const resting = el("input", {type: "checkbox", id: "resting", checked: true});
    const preview = el("figure", {class: "preview", "aria-live": "polite"});
    const send = sendPanel();
    const drawn = placesOnDemand();
    let asKeyframes = false;

    const scale = () => (0.86 * Math.min(width / (bounds.right - bounds.left || 1), height / (bounds.high - bounds.low || 1))) * state.zoom;
    const screen = (x, y) => [width / 2 + (x - state.cx) * scale(), height / 2 - (y - state.cy) * scale()];
    const plane = (sx, sy) => [state.cx + (sx - width / 2) / scale(), state.cy - (sy - height / 2) / scale()];

    function draw() {
      svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
      const places = points.map((p) => screen(p.x, p.y));
      dots.forEach((dot, i) => { dot.setAttribute("cx", places[i][0]); dot.setAttribute("cy", places[i][1]); });
      mesh.setAttribute("d", data.triangles.map((t) => "M" + t.map((i) => places[i].map((v) => v.toFixed(1)).join(" ")).join("L") + "Z").join(""));
      const [mx, my] = screen(state.x, state.y);
      mark.setAttribute("cx", mx);
      mark.setAttribute("cy", my);
      lead.setAttribute("d", state.points.filter((_, n) => Math.abs(state.weights[n]) > 1e-9).map((i) => `M${mx} ${my}L${places[i].join(" ")}`).join(""));
      placeLabels(places);
    }

    /** Names of as many prompts as there is room for, those of the blend and what was searched for first. */
    function placeLabels(places) {
      const taken = [];
      const first = new Set([...state.points, ...matches]);
      const order = [...first, ...points.keys()].filter((i, n, all) => all.indexOf(i) === n && (first.has(i) || points[i].heard));
      const made = [];
      for (const i of order) {
        const [x, y] = places[i];
        if (x < 0 || y < 0 || x > width || y > height) continue;
        const long = points[i].prompt.length * 6.4 + 4;
        const spots = [[x + 7, y + 4], [x - 7 - long, y + 4], [x - long / 2, y - 8], [x - long / 2, y + 18]];
        const free = spots.find(([sx, sy]) => sx > 0 && sx + long < width && sy > 12 && sy < height - 2
          && !taken.some(([l, t, r, b]) => sx < r && sx + long > l && sy - 11 < b && sy + 3 > t));
        if (!free) continue;
        const [sx, sy] = free;
        taken.push([sx, sy - 11, sx + long, sy + 3]);
        made.push(el("text", {x: sx, y: sy}, points[i].prompt));
        if (made.length > 90) break;
      }
      labels.replaceChildren(...made);
    }

    const named = () => state.points.map((i, n) => [points[i].prompt, state.weights[n]]);

    function describe() {
      const parts = named().filter(([, w]) => Math.abs(w) > 5e-4).sort((a, b) => b[1] - a[1]).map(([prompt, w]) => `${Math.round(w * 100)} % ${prompt}`);
      const beyond = state.weights.some((w) => w < -1e-9);
      const tooFar = state.weights.some((w) => Math.abs(w) > 4);
      status.textContent = parts.join(", ") + (beyond ? ". Extrapolation: beyond the prompts, some weights are negative." : "") + (tooFar ? " A scene takes weights from -4 to 4." : "");
      status.className = beyond ? "far" : "";
      offer();
      showPreview(preview, state);
    }

    /** The place as concepts with weights, or the way to it from its heaviest prompt and back, as keyframes. */
    function offer() {
      const order = named().sort((a, b) => b[1] - a[1]);
      const rest = order.slice(1).filter(([, w]) => Math.abs(w) > 1e-6);
      const base = order[0][0];
      if (!asKeyframes) {
        return send.offer({concepts: rest.map(([prompt, weight]) => ({prompt, weight, mask: whole}))}, base, "This place: the image's own prompt takes what the concepts leave.");
      }
      const frames = 48;
      const concepts = rest.map(([prompt, weight]) => ({prompt, mask: whole, keyframes: [
        {frame: 0, easing: "ease-in-out", weight: 0}, {frame: frames / 2, easing: "ease-in-out", weight}]}));
      send.offer({concepts, motion: {loop: true}, animation: {frames}}, base, "An animation from the heaviest prompt to this place and back.");
    }

    function nearestPlace(x, y) {
      let best = null, least = Infinity;
      for (const place of data.places) {
        const d = (place.x - x) ** 2 + (place.y - y) ** 2;
        if (d < least) { least = d; best = place; }
      }
      return best && Math.sqrt(least) < extent / 5 ? best : null;
    }

    /** The picture of the point itself where there is a model to make it, until then the nearest that there is. */
    function showPreview(box, {x, y, points: chosen, weights}) {
      const place = nearestPlace(x, y);
      const image = el("img", {alt: "The picture made nearest to here", style: "width: 100%"});
      const caption = el("figcaption", {}, place ? "The picture that was made nearest to here" : "No picture was made near here.");
      if (place) image.src = source(place.file);
      box.replaceChildren(...(place ? [image] : []), caption);
      if (!drawn) return;
      caption.append(drawn.able(weights) ? " Drawing this very place…" : " A scene cannot reach this place.");
      drawn.point(chosen, weights, (address) => {
        image.src = address;
        image.alt = "The picture of this very place";
        caption.textContent = "The picture of this very place";
        box.replaceChildren(image, caption);
      }, (words) => { caption.textContent = words; });
    }

    /** Pictures made on demand by the page around this one; null where it makes none. The point's come before those of
     * a resting pointer; of each the newest is shown. */
    function placesOnDemand() {
      const ask = (() => { try { return data.name && window.parent !== window && window.parent.masknoiseExplorePlace; } catch { return null; } })();
      if (!ask) return null;
      const known = new Map();
      const able = (weights) => weights.every((w) => w >= -4 && w <= 5);
      const point = {timer: 0, newest: 0, open: false}, pointer = {timer: 0, newest: 0, open: false};

      function request(lane, rest, chosen, weights, show, fail) {
        clearTimeout(lane.timer);
        lane.newest += 1;
        lane.open = false;
        const key = keyOf(chosen, weights), mine = lane.newest;
        if (known.has(key)) return show(known.get(key));
        if (!able(weights)) return;
        lane.open = true;
        const question = {view: data.name, prompts: chosen.map((i) => points[i].prompt), weights: [...weights]};
        lane.timer = setTimeout(() => {
          if (lane === pointer && point.open) { lane.open = false; return; }
          ask(question).then((address) => {
            if (address) known.set(key, address);
            if (mine !== lane.newest) return;
            lane.open = false;
            if (address) show(address);
          }, (error) => {
            if (mine !== lane.newest) return;
            lane.open = false;
            fail(error.message);
          });
        }, rest);
      }

      return {
        able,
        point: (...given) => request(point, 250, ...given),
        pointer: (...given) => request(pointer, 600, ...given),
        left: () => { clearTimeout(pointer.timer); pointer.newest += 1; pointer.open = false; },
      };
    }

    const keyOf = (chosen, weights) => chosen.map((i, n) => `${i}:${weights[n].toFixed(2)}`).join();

    function weightSliders() {
      weightRows.replaceChildren(...state.points.map((i, n) => {
        const id = `weight-${i}`;
        const input = el("input", {type: "range", id, min: -2, max: 2, step: 0.01, oninput: () => setWeight(n, Number(input.value))});
        input.value = state.weights[n];
        const output = el("output", {for: id}, state.weights[n].toFixed(3));
        const drop = el("button", {type: "button", "aria-label": `Take ${points[i].prompt} out`, onclick: () => remove(n), disabled: state.points.length < 2}, "×");
        return el("div", {class: "weight"}, el("label", {for: id}, points[i].prompt), output, drop, input);
      }));
    }

    function refreshSliders() {
      weightRows.querySelectorAll("input").forEach((input, n) => { if (document.activeElement !== input || !dragging) input.value = state.weights[n]; });
      weightRows.querySelectorAll("output").forEach((output, n) => { output.textContent = state.weights[n].toFixed(3); });
    }

    let dragging = false;
    function setWeight(n, value) {
      const rest = 1 - state.weights[n], others = state.weights.length - 1;
      state.weights = state.weights.map((w, k) => (k === n ? value : Math.abs(rest) > 1e-6 ? (w * (1 - value)) / rest : (1 - value) / others));
      if (!others) state.weights = [1];
      [state.x, state.y] = placeOf(state.points, state.weights);
      dragging = true;
      refreshSliders();
      dragging = false;
      describe();
      draw();
    }

    function remove(n) {
      state.points.splice(n, 1);
      state.weights.splice(n, 1);
      const sum = state.weights.reduce((a, b) => a + b, 0);
      state.weights = Math.abs(sum) > 1e-6 ? state.weights.map((w) => w / sum) : state.weights.map(() => 1 / state.weights.length);
      [state.x, state.y] = placeOf(state.points, state.weights);
      weightSliders(); describe(); draw();
    }

    function add(i) {
      if (!state.points.includes(i)) { state.points.push(i); state.weights.push(0); }
      keep.checked = true;
      weightSliders(); describe(); draw();
    }

    function goTo(x, y) {
      const kept = keep.checked && state.points.length > 2 ? moved(state.points, state.weights, x, y) : null;
      if (kept) state.weights = kept;
      else ({points: state.points, weights: state.weights} = (({points: p, weights: w}) => ({points: [...p], weights: [...w]}))(weightsAt(x, y)));
      [state.x, state.y] = [x, y];
      weightSliders(); describe(); draw();
    }

    function goToPrompt(i) {
      state.points = [i];
      state.weights = [1];
      keep.checked = false;
      [state.x, state.y] = [points[i].x, points[i].y];
      [state.cx, state.cy] = [state.x, state.y];
      weightSliders(); describe(); draw();
    }

    function zoomBy(factor, sx = width / 2, sy = height / 2) {
      const [x, y] = plane(sx, sy);
      state.zoom = Math.max(0.5, Math.min(60, state.zoom * factor));
      const [nx, ny] = plane(sx, sy);
      state.cx += x - nx;
      state.cy += y - ny;
      draw();
    }

    // Pointer: a click sets the point, a drag moves the map, the wheel zooms.
    const local = (event) => {
      const box = svg.getBoundingClientRect();
      return [event.clientX - box.left, event.clientY - box.top];
    };
    let down = null;
    svg.addEventListener("pointerdown", (event) => { down = {at: local(event), cx: state.cx, cy: state.cy, panned: false}; svg.setPointerCapture(event.pointerId); });
    svg.addEventListener("pointermove", (event) => {
      const at = local(event);
      if (down) {
        const [dx, dy] = [at[0] - down.at[0], at[1] - down.at[1]];
        if (Math.hypot(dx, dy) > 4) down.panned = true;
        if (down.panned) { state.cx = down.cx - dx / scale(); state.cy = down.cy + dy / scale(); hover.hidden = true; draw(); }
        return;
      }
      showHover(at);
    });
    svg.addEventListener("pointerup", (event) => {
      if (down && !down.panned) goTo(...plane(...local(event)));
      down = null;
    });
    svg.addEventListener("pointercancel", () => { down = null; });
    svg.addEventListener("pointerleave", () => { hover.hidden = true; if (drawn) drawn.left(); });
    svg.addEventListener("wheel", (event) => { event.preventDefault(); zoomBy(Math.exp(-event.deltaY / 400), ...local(event)); }, {passive: false});
    svg.addEventListener("keydown", (event) => {
      const far = event.shiftKey ? 1 : 12;
      const moves = {ArrowLeft: [-far, 0], ArrowRight: [far, 0], ArrowUp: [0, -far], ArrowDown: [0, far]};
      if (moves[event.key]) {
        const [sx, sy] = screen(state.x, state.y);
        goTo(...plane(sx + moves[event.key][0], sy + moves[event.key][1]));
      } else if (event.key === "+" || event.key === "=") zoomBy(1.4);
      else if (event.key === "-") zoomBy(1 / 1.4);
      else if (event.key === "0") reset();
      else return;
      event.preventDefault();
    });

    function showHover([sx, sy]) {
      const [x, y] = plane(sx, sy);
      const near = points.map((p, i) => [(p.x - x) ** 2 + (p.y - y) ** 2, i]).sort((a, b) => a[0] - b[0]).slice(0, 3).map(([, i]) => points[i].prompt);
      const place = nearestPlace(x, y);
      const image = el("img", {alt: ""});
      if (place) image.src = source(place.file);
      hover.replaceChildren(...(place ? [image] : []), ...near.map((prompt) => el("div", {}, prompt)));
      hover.hidden = false;
      if (drawn && resting.checked) {
        const blend = weightsAt(x, y);
        drawn.pointer(blend.points, blend.weights, (address) => {
          image.src = address;
          image.className = "very";
          if (!image.isConnected) hover.prepend(image);
        }, () => {});
      }
      hover.style.left = `${Math.min(sx + 14, width - 190)}px`;
      hover.style.top = `${sy + 14 > height - 170 ? Math.max(0, sy - 170) : sy + 14}px`;
    }

    function reset() {
      Object.assign(state, {zoom: 1, cx: (bounds.left + bounds.right) / 2, cy: (bounds.low + bounds.high) / 2});
      draw();
    }

    // Search
    let matches = [];
    const results = el("ul", {class: "plain-list"});
    const search = el("input", {type: "search", id: "search", placeholder: "forest", oninput: () => find()});
    const found = el("p", {role: "status", class: "soft"});
    function find() {
      const text = search.value.trim().toLowerCase();
      matches = text ? points.map((p, i) => i).filter((i) => points[i].prompt.toLowerCase().includes(text)) : [];
      dots.forEach((dot, i) => dot.classList.toggle("found", matches.includes(i)));
      found.textContent = text ? `${matches.length} found` : "";
      results.replaceChildren(...matches.slice(0, 8).map((i) => el("li", {class: "bar"},
        el("button", {type: "button", onclick: () => goToPrompt(i)}, points[i].prompt),
        el("button", {type: "button", onclick: () => add(i), "aria-label": `Add ${points[i].prompt} to the blend`}, "+"))));
      draw();
    }

    const kinds = [["As concepts", false], ["As keyframes", true]].map(([name, moving]) =>
      el("button", {type: "button", "aria-pressed": String(!moving), onclick: (event) => {
        asKeyframes = moving;
        kinds.forEach((one) => one.setAttribute("aria-pressed", String(one === event.currentTarget)));
        offer();
      }}, name));
    const share = Math.round(100 * (data.explained[0] + data.explained[1]));
    const silent = points.length - heard.length;
    main.append(el("div", {class: "columns"},
      el("div", {},
        el("div", {class: "bar"},
          el("button", {type: "button", onclick: () => zoomBy(1.4), "aria-label": "Closer"}, "+"),
          el("button", {type: "button", onclick: () => zoomBy(1 / 1.4), "aria-label": "Further away"}, "−"),
          el("button", {type: "button", onclick: reset}, "All")),
        el("div", {class: "map"}, svg, hover),
        status,
        el("p", {class: "soft", id: "keys"}, "Arrow keys move the point, with Shift a little; + and − zoom, 0 shows all; drag to move the map."),
        el("p", {class: "soft"}, `This plane holds ${share} % of the variance of ${heard.length} prompts.` + (silent ? ` ${silent} more say nothing to this model; they are faint.` : ""))),
      el("div", {},
        card("Search", el("label", {for: "search"}, "A prompt of the map"), el("div", {class: "bar"}, search), found, results),
        card("Weights", el("div", {class: "bar"}, keep, el("label", {for: "keep"}, "Keep these prompts when the point moves")), weightRows),
        el("div", {class: "card"}, preview,
          drawn ? el("div", {class: "bar"}, resting, el("label", {for: "resting"}, "Draw the place under a resting pointer as well")) : null),
        el("div", {class: "bar"}, ...kinds),
        send.box)));
    const measure = () => { const box = svg.getBoundingClientRect(); width = box.width || 600; height = box.height || 560; draw(); };
    new ResizeObserver(measure).observe(svg);
    goTo(state.cx, state.cy);
    window.masknoiseMap = {state, goTo, setWeight, screen, add};
  }

  // --- Grid

  function grid() {
    const {seeds, steps, guidance, words} = data.axes;
    const byWord = words[0] !== null;
    const cells = new Map(data.cells.map((cell) => [[cell.seed, cell.steps, cell.guidance, cell.words].join(), cell]));
    const send = sendPanel();
    const detail = el("div", {});
    const table = el("table", {});
    let shown = words[words.length - 1], pressed = null;

    function command(cell) {
      const quoted = (text) => `"${text.replace(/["\\$`]/g, "\\$&")}"`;
      const size = said.size ? ` --size ${said.size[1]}x${said.size[0]}` : "";
      return `python -m lib_masknoise render scene.json --prompt ${quoted(cell.prompt)} --seed ${cell.seed} --steps ${cell.steps} --guidance ${cell.guidance}` +
        size + (said.negative_prompt ? ` --negative ${quoted(said.negative_prompt)}` : "") + (said.model ? ` --model ${quoted(said.model)}` : "");
    }

    function choose(cell, button) {
      if (pressed) pressed.setAttribute("aria-pressed", "false");
      pressed = button;
      button.setAttribute("aria-pressed", "true");
      detail.replaceChildren(
        cell.file ? el("img", {src: source(cell.file), alt: `${cell.prompt}, seed ${cell.seed}`, style: "width: 100%"}) : el("p", {}, "It was not made."),
        el("ul", {class: "plain-list"},
          el("li", {}, cell.prompt), el("li", {}, `seed ${cell.seed}`), el("li", {}, `${cell.steps} steps`), el("li", {}, `guidance ${cell.guidance}`)),
        // In a WebUI its own settings make it.
        ...(said.scheduler ? [] : [el("code", {style: "overflow-wrap: anywhere"}, command(cell))]));
      send.offer(data.scene || {concepts: []}, cell.prompt, "The scene that these settings render.", made({seed: cell.seed, steps: cell.steps, guidance_scale: cell.guidance}));
    }

    function fill() {
      const columns = guidance;
      const head = el("tr", {}, el("td", {}), ...columns.map((g) => el("th", {scope: "col"}, `guidance ${g}`)));
      const rows = seeds.flatMap((seed) => steps.map((count) => el("tr", {},
        el("th", {scope: "row"}, `seed ${seed}`, el("br"), `${count} step${count === 1 ? "" : "s"}`),
        ...columns.map((g) => {
          const cell = cells.get([seed, count, g, shown].join());
          const name = `seed ${seed}, ${count} steps, guidance ${g}`;
          const button = el("button", {type: "button", "aria-pressed": "false", "aria-label": name, onclick: () => choose(cell, button)},
            cell.file ? el("img", {src: source(cell.file), alt: ""}) : el("span", {}, "–"));
          return el("td", {}, button);
        }))));
      table.replaceChildren(el("thead", {}, head), el("tbody", {}, ...rows));
      pressed = null;
    }

    const parts = [];
    if (byWord) {
      const status = el("p", {role: "status"});
      const prompts = words.map((count) => data.cells.find((cell) => cell.words === count).prompt);
      data.cells.forEach((cell) => { if (cell.file) new Image().src = source(cell.file); });
      const control = slider("Words of the prompt", {max: words.length - 1, value: words.length - 1, text: (i) => prompts[i], oninput: (i) => {
        shown = words[i];
        status.textContent = prompts[i];
        fill();
      }});
      parts.push(card("Word by word", control.input, status));
      control.tell();
    } else fill();
    const size = slider("Size of the pictures", {min: 48, max: 320, value: 128, text: (v) => `${v} pixels`, oninput: (v) => table.style.setProperty("--cell", `${v}px`)});
    size.tell();
    main.append(...parts, el("div", {class: "columns"},
      el("div", {}, el("div", {class: "scroll", tabindex: 0, role: "region", "aria-label": "All pictures"}, table),
        el("div", {class: "bar"}, el("span", {class: "soft", "aria-hidden": "true"}, "Size"), size.input),
        data.sheet ? el("a", {class: "button", href: source(data.sheet)}, "The contact sheet") : null),
      el("div", {}, card("One picture", detail), send.box)));
    const first = table.querySelector("button");
    if (first) first.click();
  }

  // --- The page

  const titles = {
    journey: () => `Journey: ${said.prompt || "a scene"}`,
    between: () => `Between ${data.from} and ${data.to}`,
    map: () => "Map of prompts",
    grid: () => `Grid: ${said.prompt}`,
  };
  document.getElementById("title").textContent = document.title = titles[data.view]();
  document.getElementById("settings").textContent = [
    said.model || "built-in model", `seed ${said.seed}`, data.view === "grid" ? "" : `${said.steps} steps, guidance ${said.guidance_scale}`,
    [said.sampler, said.scheduler].filter(Boolean).join(", "),
    said.size ? `${said.size[1]} × ${said.size[0]}` : "", said.negative_prompt ? `not: ${said.negative_prompt}` : "",
  ].filter(Boolean).join(" · ");
  document.getElementById("interrupted").hidden = !data.interrupted;
  const theme = document.getElementById("theme");
  const dark = () => (document.documentElement.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  const name = () => { theme.setAttribute("aria-pressed", String(dark())); };
  theme.addEventListener("click", () => { document.documentElement.dataset.theme = dark() ? "light" : "dark"; name(); });
  name();
  ({journey, between, map: promptMap, grid})[data.view]();
})();
