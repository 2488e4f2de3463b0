// A message over the slide.

export function notify(text, { good = false } = {}) {
  const notice = document.getElementById("notice");
  notice.textContent = text;
  notice.hidden = !text;
  notice.classList.toggle("good", good);
}
