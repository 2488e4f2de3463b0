// In a notebook's output: tries the viewer's page behind the picture, and shows it once it has its slide.
((values) => {
  const box = document.getElementById(values.place);
  if (!box) return;
  const addresses = [values.url];
  try {
    const { baseUrl } = JSON.parse(document.getElementById("jupyter-config-data").textContent);
    addresses.unshift(baseUrl.replace(/\/?$/, "/") + values.proxied); // of jupyter-server-proxy, if it is installed
  } catch { /* not JupyterLab or Notebook */ }
  const frames = addresses.map((address) => {
    const frame = document.createElement("iframe");
    frame.style.cssText = "position:absolute;inset:0;width:100%;height:100%;border:0;visibility:hidden";
    frame.title = "slide viewer";
    frame.allow = "clipboard-write; fullscreen";
    frame.src = address;
    box.append(frame);
    return frame;
  });
  const end = (kept) => {
    window.removeEventListener("message", answer);
    for (const frame of frames) if (frame !== kept) frame.remove();
  };
  const answer = (event) => {
    const found = frames.find((frame) => frame.contentWindow === event.source);
    if (!found || event.data !== values.shown) return;
    end(found);
    for (const other of [...box.children]) if (other !== found) other.remove();
    found.style.visibility = "visible";
  };
  window.addEventListener("message", answer);
  setTimeout(() => {
    if (frames.some((frame) => frame.style.visibility === "visible")) return;
    end();
    const hint = document.createElement("p");
    hint.textContent = "The live page is not reached from here"
      + (frames.length > 1 ? `; through a proxy it needs explore(hosts=["${location.hostname}"])` : "")
      + ". This picture zooms.";
    box.after(hint);
  }, values.patience_ms);
})
