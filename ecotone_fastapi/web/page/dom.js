// Makes elements. Whatever comes from outside becomes text or an attribute, never markup.

/**
 * Makes an element.
 * @param {string} tag Its name.
 * @param {Object<string, *>} given Attributes; a function is a listener for the event of its name. What is null,
 *   undefined or false is left out.
 * @param {...(Node|string|number|null|undefined|Array)} children Its content, as text where it is no node.
 */
export function el(tag, given = {}, ...children) {
  return furnish(document.createElement(tag), given, children);
}

const SVG = "http://www.w3.org/2000/svg";

/** Makes an element of a drawing. */
export function svg(tag, given = {}, ...children) {
  return furnish(document.createElementNS(SVG, tag), given, children);
}

function furnish(node, given, children) {
  for (const [name, value] of Object.entries(given)) {
    if (value === null || value === undefined || value === false) {
      continue;
    }
    if (typeof value === "function") {
      node.addEventListener(name, value);
    } else {
      node.setAttribute(name, value === true ? "" : String(value));
    }
  }
  node.append(...children.flat(3).filter((one) => one !== null && one !== undefined && one !== false).map(asNode));
  return node;
}

function asNode(child) {
  return child instanceof Node ? child : document.createTextNode(String(child));
}

/** Writes a text, unless it is there already: what did not change is not read out again. */
export function say(node, text) {
  const wanted = String(text ?? "");
  if (node.textContent !== wanted) {
    node.textContent = wanted;
  }
}

/** Sets an attribute, or takes it away when the value is null or false. */
export function set(node, name, value) {
  if (value === null || value === undefined || value === false) {
    node.removeAttribute(name);
  } else if (node.getAttribute(name) !== String(value)) {
    node.setAttribute(name, value === true ? "" : String(value));
  }
}

/** Makes a button. */
export function button(text, pressed, given = {}) {
  return el("button", { type: "button", click: pressed, ...given }, text);
}

/**
 * Keeps one element for each of several things, in their order. An element stays as long as its thing does, so that
 * the focus and what is selected in it survive an update.
 */
export class Keyed {
  /**
   * @param {Element} parent Where the elements are.
   * @param {function(*): string} keyOf What tells one thing from another.
   * @param {function(*): {node: Element, update: function(*): void}} make Makes the element of a thing.
   */
  constructor(parent, keyOf, make) {
    this.parent = parent;
    this.keyOf = keyOf;
    this.make = make;
    this.kept = new Map();
  }

  /** Shows these things and no others. */
  show(things) {
    const kept = new Map();
    let at = this.parent.firstElementChild;
    for (const thing of things) {
      const key = this.keyOf(thing);
      const one = this.kept.get(key) ?? this.make(thing);
      one.update(thing);
      kept.set(key, one);
      if (one.node === at) {
        at = at.nextElementSibling;
      } else {
        this.parent.insertBefore(one.node, at);
      }
    }
    for (const [key, one] of this.kept) {
      if (!kept.has(key)) {
        one.node.remove();
      }
    }
    this.kept = kept;
  }
}
