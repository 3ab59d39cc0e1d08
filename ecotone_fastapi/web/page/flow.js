// The flow of messages, as a drawing and as a table.

import { get } from "./api.js";
import { button, el, say, set, svg } from "./dom.js";
import { number, shortened } from "./format.js";
import { layout } from "./flow_layout.js";
import { cell, rowHead, table } from "./tables.js";

const SIZE = { width: 210, height: 44, across: 80, down: 18 };
const MARGIN = 16;
const SMALLEST = 0.65; // at first: below, a drawing is scrolled rather than illegible
const LONGEST = 27; // characters that fit into a node
const LINKS = {
  handler: (node) => `#/handlers/${encodeURIComponent(node.id.replace(/^handler:/, ""))}`,
  channel: (node) => `#/channels/${encodeURIComponent(node.id.replace(/^channel:/, ""))}`,
  projection: () => "#/projections",
};

/** Shows it. */
export function open(place, { live }) {
  const request = new AbortController();
  const content = el("div");
  place.append(el("div", { class: "heading" }, el("h1", {}, "Message flow"), el("p", { class: "faint" }, "What is declared; what else a handler sends is known when it does so.")), content);
  get("diagram", {}, request.signal).then(
    (diagram) => {
      content.append(...shown(diagram, content.clientWidth));
      tellDepths(content, live.overview);
    },
    (error) => error.name !== "AbortError" && content.append(el("p", { class: "failure" }, error.message)),
  );
  return { update: (now) => tellDepths(content, now), close: () => request.abort() };
}

/** Writes on each channel how many messages wait there now. */
function tellDepths(content, now) {
  const depths = new Map((now?.channels ?? []).map((one) => [one.name, one.depth]));
  for (const box of content.querySelectorAll("[data-channel]")) {
    const depth = depths.get(box.dataset.channel);
    say(box.querySelector(".kind"), depth ? `channel, ${number(depth)} waiting` : "channel");
  }
}

function shown(diagram, width) {
  if (diagram.nodes.length === 0) {
    return [el("p", { class: "empty" }, "This application has no handlers.")];
  }
  const drawing = draw(diagram);
  const whole = drawing.viewBox.baseVal;
  let scale = 1;
  const zoom = (factor) => () => {
    scale = Math.min(2, Math.max(0.3, scale * factor));
    set(drawing, "width", Math.round(whole.width * scale));
    set(drawing, "height", Math.round(whole.height * scale));
  };
  zoom(Math.min(1, Math.max(SMALLEST, (width - 2 * MARGIN) / whole.width)))();
  return [
    el("div", { class: "buttons" }, button("Larger", zoom(1.25)), button("Smaller", zoom(0.8))),
    el("div", { class: "drawing", tabindex: "0", role: "region", "aria-label": "Drawing of the message flow" }, drawing),
    asTable(diagram),
  ];
}

function draw({ nodes, edges }) {
  const { width, height, places, ways } = layout(nodes, edges, SIZE);
  const drawn = edges.map((edge, at) => drawEdge(edge, ways[at], places.get(edge.source)));
  const boxes = new Map(nodes.map((node) => [node.id, drawNode(node, places.get(node.id))]));
  const whole = [width + 2 * MARGIN, height + 2 * MARGIN];
  const drawing = svg(
    "svg",
    { viewBox: `${-MARGIN} ${-MARGIN} ${whole[0]} ${whole[1]}`, width: whole[0], height: whole[1], role: "group", "aria-label": "Message flow" },
    svg("defs", {}, svg("marker", { id: "tip", viewBox: "0 0 8 8", refX: "7", refY: "4", markerWidth: "7", markerHeight: "7", orient: "auto-start-reverse" }, svg("path", { class: "tip", d: "M0 0 8 4 0 8z" }))),
    drawn,
    [...boxes.values()],
  );
  for (const [id, box] of boxes) {
    const near = new Set([id]);
    const ways = edges.map((edge) => edge.source === id || edge.target === id);
    edges.filter((_, at) => ways[at]).forEach((edge) => near.add(edge.source).add(edge.target));
    const point = (on) => () => {
      boxes.forEach((other, otherId) => other.classList.toggle("dim", on && !near.has(otherId)));
      drawn.forEach((line, at) => line.classList.toggle("dim", on && !ways[at]));
    };
    for (const [event, on] of [["mouseenter", true], ["focusin", true], ["mouseleave", false], ["focusout", false]]) {
      box.addEventListener(event, point(on));
    }
  }
  return drawing;
}

function drawNode(node, at) {
  const round = { event: SIZE.height / 2, command: 4, query: 4, handler: 8 }[node.kind] ?? 2;
  const box = svg(
    "g",
    { "data-kind": node.kind, "data-channel": node.kind === "channel" && node.id.replace(/^channel:/, ""), transform: `translate(${at.x} ${at.y})` },
    svg("title", {}, `${node.kind} ${node.label}\n${node.detail}`),
    svg("rect", { class: "shape", width: SIZE.width, height: SIZE.height, rx: round }),
    node.kind === "channel" && svg("path", { class: "shape", d: `M12 0v${SIZE.height}M${SIZE.width - 12} 0v${SIZE.height}` }),
    svg("text", { class: "kind", x: SIZE.width / 2, y: 15, "text-anchor": "middle" }, node.kind),
    svg("text", { x: SIZE.width / 2, y: 33, "text-anchor": "middle" }, shortened(node.label, LONGEST)),
  );
  const address = LINKS[node.kind]?.(node);
  return address ? svg("a", { href: address, "aria-label": `${node.kind} ${node.label}` }, box) : box;
}

function drawEdge(edge, points, place) {
  const dashed = edge.kind === "publishes" || edge.kind === "records" ? "5 4" : null;
  const said = [edge.kind, edge.label].filter(Boolean).join(": ");
  return svg("path", { class: "edge", d: way(points ?? loop(place)), "stroke-dasharray": dashed, "marker-end": "url(#tip)" }, svg("title", {}, said));
}

/** From point to point in soft bends. */
function way(points) {
  const [first, ...rest] = points;
  let before = first;
  const parts = rest.map((point) => {
    const bend = (point.x - before.x) / 2;
    const part = `C${before.x + bend} ${before.y} ${point.x - bend} ${point.y} ${point.x} ${point.y}`;
    before = point;
    return part;
  });
  return `M${first.x} ${first.y}${parts.join("")}`;
}

/** The way of an edge that ends where it begins. */
function loop(place) {
  const x = place.x + SIZE.width;
  return [{ x, y: place.y + 10 }, { x: x + 30, y: place.y + SIZE.height / 2 }, { x, y: place.y + SIZE.height - 10 }];
}

function asTable({ nodes, edges }) {
  const by = new Map(nodes.map((node) => [node.id, node]));
  const made = table("The same as a table", ["From", "What it does", "To"], "Nothing leads anywhere.");
  made.body.append(...edges.map((edge) => el(
    "tr",
    {},
    rowHead(by.get(edge.source).label, el("span", { class: "second" }, by.get(edge.source).kind)),
    cell("What it does", {}, edge.kind, edge.label && el("span", { class: "second" }, edge.label)),
    cell("To", {}, by.get(edge.target).label, el("span", { class: "second" }, by.get(edge.target).kind)),
  )));
  made.showEmpty(edges.length === 0);
  return el("details", {}, el("summary", {}, "As a table"), made.node);
}
