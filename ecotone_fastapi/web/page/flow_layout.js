// Where the nodes of a graph are drawn: from left to right in layers, with as few crossings as some sweeps can reach.

const SWEEPS = 8;

/**
 * @param {Array<{id: string}>} nodes
 * @param {Array<{source: string, target: string}>} edges
 * @param {{width: number, height: number, across: number, down: number}} size Of a node, and the space between nodes.
 * @returns {{width: number, height: number, places: Map<string, {x: number, y: number}>, ways: Array<Array<{x: number, y: number}>>}}
 *   The upper left corner of each node; for each edge the points that it passes.
 */
export function layout(nodes, edges, size) {
  const places = new Map();
  const ways = new Array(edges.length).fill(null);
  let height = 0;
  let width = 0;
  for (const part of parts(nodes, edges)) {
    const drawn = layoutPart(part, size);
    for (const [id, at] of drawn.places) {
      places.set(id, { x: at.x, y: at.y + height });
    }
    for (const [index, points] of drawn.ways) {
      ways[index] = points.map((at) => ({ x: at.x, y: at.y + height }));
    }
    width = Math.max(width, drawn.width);
    height += drawn.height + size.down;
  }
  return { width, height, places, ways };
}

/** Splits a graph into those parts that have nothing to do with each other, the largest first. */
function parts(nodes, edges) {
  const near = new Map(nodes.map((node) => [node.id, []]));
  for (const edge of edges) {
    near.get(edge.source).push(edge.target);
    near.get(edge.target).push(edge.source);
  }
  const part = new Map();
  const found = [];
  for (const node of nodes) {
    if (part.has(node.id)) {
      continue;
    }
    const mine = { ids: [], edges: [] };
    const open = [node.id];
    part.set(node.id, mine);
    while (open.length > 0) {
      const id = open.pop();
      mine.ids.push(id);
      for (const other of near.get(id)) {
        if (!part.has(other)) {
          part.set(other, mine);
          open.push(other);
        }
      }
    }
    found.push(mine);
  }
  const order = new Map(nodes.map((node, index) => [node.id, index]));
  for (const one of found) {
    one.ids.sort((a, b) => order.get(a) - order.get(b));
  }
  edges.forEach((edge, index) => part.get(edge.source).edges.push({ ...edge, index }));
  return found.sort((a, b) => b.ids.length - a.ids.length);
}

function layoutPart({ ids, edges }, size) {
  const forward = withoutCircles(ids, edges);
  const layerOf = layers(ids, forward);
  const { rows, chains } = withStops(ids, forward, layerOf);
  untangle(rows, chains);
  const y = settle(rows, chains, size.height + size.down);
  const step = size.width + size.across;
  const places = new Map(ids.map((id) => [id, { x: layerOf.get(id) * step, y: y.get(id) }]));
  const ways = forward.map((edge, at) => {
    const points = chains[at].map((id, hop) => {
      const x = (layerOf.get(edge.from) + hop) * step;
      const middle = y.get(id) + size.height / 2;
      const isEnd = hop === chains[at].length - 1;
      // An edge leaves on the right of a node and arrives on the left of the next.
      return hop === 0 ? [{ x: x + size.width, y: middle }] : isEnd ? [{ x, y: middle }] : [{ x, y: middle }, { x: x + size.width, y: middle }];
    }).flat();
    return [edge.index, edge.turned ? points.reverse() : points];
  });
  return { places, ways, width: (Math.max(...layerOf.values()) + 1) * step - size.across, height: Math.max(...y.values()) + size.height };
}

/** Turns those edges round that lead back to where the way comes from. */
function withoutCircles(ids, edges) {
  const out = new Map(ids.map((id) => [id, []]));
  for (const edge of edges) {
    out.get(edge.source).push(edge);
  }
  const entered = new Set();
  const left = new Set();
  const turned = new Set();
  const begin = ids.filter((id) => !edges.some((edge) => edge.target === id));
  for (const root of [...begin, ...ids]) {
    if (entered.has(root)) {
      continue;
    }
    const stack = [[root, 0]];
    entered.add(root);
    while (stack.length > 0) {
      const top = stack[stack.length - 1];
      const edge = out.get(top[0])[top[1]];
      top[1] += 1;
      if (edge === undefined) {
        left.add(top[0]);
        stack.pop();
      } else if (!entered.has(edge.target)) {
        entered.add(edge.target);
        stack.push([edge.target, 0]);
      } else if (!left.has(edge.target)) {
        turned.add(edge.index);
      }
    }
  }
  return edges
    .filter((edge) => edge.source !== edge.target)
    .map((edge) => (turned.has(edge.index) ? { from: edge.target, to: edge.source, index: edge.index, turned: true } : { from: edge.source, to: edge.target, index: edge.index, turned: false }));
}

/** Puts each node behind all that lead to it. */
function layers(ids, edges) {
  const layer = new Map(ids.map((id) => [id, 0]));
  const waiting = new Map(ids.map((id) => [id, 0]));
  edges.forEach((edge) => waiting.set(edge.to, waiting.get(edge.to) + 1));
  const open = ids.filter((id) => waiting.get(id) === 0);
  while (open.length > 0) {
    const id = open.shift();
    for (const edge of edges.filter((one) => one.from === id)) {
      layer.set(edge.to, Math.max(layer.get(edge.to), layer.get(id) + 1));
      waiting.set(edge.to, waiting.get(edge.to) - 1);
      if (waiting.get(edge.to) === 0) {
        open.push(edge.to);
      }
    }
  }
  return layer;
}

/** An edge over several layers has a stop in each, so that it is led round the nodes there. */
function withStops(ids, edges, layerOf) {
  const rows = [];
  const put = (layer, id) => {
    rows[layer] ??= [];
    rows[layer].push(id);
  };
  ids.forEach((id) => put(layerOf.get(id), id));
  const chains = edges.map((edge, at) => {
    const chain = [edge.from];
    for (let layer = layerOf.get(edge.from) + 1; layer < layerOf.get(edge.to); layer += 1) {
      const stop = `\u0000${at} ${layer}`;
      put(layer, stop);
      chain.push(stop);
    }
    return [...chain, edge.to];
  });
  return { rows, chains };
}

function neighbours(chains) {
  const before = new Map();
  const after = new Map();
  const add = (map, id, other) => map.set(id, [...(map.get(id) ?? []), other]);
  for (const chain of chains) {
    for (let at = 1; at < chain.length; at += 1) {
      add(before, chain[at], chain[at - 1]);
      add(after, chain[at - 1], chain[at]);
    }
  }
  return { before, after };
}

const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;

/** Orders the nodes of each layer by where their neighbours are. */
function untangle(rows, chains) {
  const { before, after } = neighbours(chains);
  for (let sweep = 0; sweep < SWEEPS; sweep += 1) {
    const down = sweep % 2 === 0;
    const order = down ? rows.keys() : [...rows.keys()].reverse();
    for (const at of order) {
      const beside = rows[at + (down ? -1 : 1)];
      if (beside === undefined) {
        continue;
      }
      const index = new Map(beside.map((id, place) => [id, place]));
      const near = down ? before : after;
      const wish = new Map(rows[at].map((id, place) => [id, near.has(id) ? mean(near.get(id).map((other) => index.get(other))) : place]));
      rows[at].sort((a, b) => wish.get(a) - wish.get(b));
    }
  }
}

/** Gives each node its height: near its neighbours, and not upon another one. */
function settle(rows, chains, step) {
  const { before, after } = neighbours(chains);
  const y = new Map();
  rows.forEach((row) => row.forEach((id, place) => y.set(id, place * step)));
  for (let sweep = 0; sweep < SWEEPS; sweep += 1) {
    for (const row of sweep % 2 === 0 ? rows : [...rows].reverse()) {
      const wishes = row.map((id) => {
        const near = [...(before.get(id) ?? []), ...(after.get(id) ?? [])];
        return near.length > 0 ? mean(near.map((other) => y.get(other))) : y.get(id);
      });
      // From above, then from below: what has to give way does so half in each direction.
      const from = [...wishes];
      for (let at = 1; at < from.length; at += 1) {
        from[at] = Math.max(from[at], from[at - 1] + step);
      }
      const to = [...wishes];
      for (let at = to.length - 2; at >= 0; at -= 1) {
        to[at] = Math.min(to[at], to[at + 1] - step);
      }
      row.forEach((id, at) => y.set(id, (from[at] + to[at]) / 2));
      for (let at = 1; at < row.length; at += 1) {
        y.set(row[at], Math.max(y.get(row[at]), y.get(row[at - 1]) + step));
      }
    }
  }
  const top = Math.min(...y.values());
  y.forEach((value, id) => y.set(id, value - top));
  return y;
}
