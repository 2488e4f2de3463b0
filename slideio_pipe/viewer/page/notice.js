// A message over the slide. Good news leaves by itself; a click takes any message away.

const STAYS_MS = 8000;
let leaving;

export function notify(text, { good = false, stays = STAYS_MS } = {}) {
  clearTimeout(leaving);
  const notice = document.getElementById("notice");
  notice.textContent = text;
  notice.hidden = !text;
  notice.classList.toggle("good", good);
  notice.title = "Click to close";
  notice.onclick = () => { notice.hidden = true; };
  if (text && good) leaving = setTimeout(notice.onclick, stays);
}
