// The keys of the page. Keys in a text field belong to the field.

const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

export function useKeys(pane, actions) {
  document.addEventListener("keydown", (event) => {
    const { target } = event;
    const typing = target.matches("input[type=text], input[type=search], input[type=number], select, textarea");
    if (typing || event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
    if (target.matches("[role=slider], input[type=range]") && event.key.startsWith("Arrow")) return;
    if (event.key === " " && target.matches("button, input, summary")) return;
    const { viewport } = pane.viewer;
    if (MOVES[event.key]) {
      const [x, y] = MOVES[event.key];
      const { width, height } = viewport.getBounds();
      viewport.panBy(new OpenSeadragon.Point((x * width) / 6, (y * height) / 6));
    } else if (event.key === "+" || event.key === "=") viewport.zoomBy(1.4);
    else if (event.key === "-" || event.key === "_") viewport.zoomBy(1 / 1.4);
    else if (event.key === "0") viewport.goHome();
    else if (event.key.toLowerCase() === "o") { if (!event.repeat) actions.peek(true); }
    else if (actions[event.key.toLowerCase()]) actions[event.key.toLowerCase()]();
    else return;
    viewport.applyConstraints();
    event.preventDefault();
  });
  document.addEventListener("keyup", (event) => {
    if (event.key.toLowerCase() === "o") actions.peek(false);
  });
}
