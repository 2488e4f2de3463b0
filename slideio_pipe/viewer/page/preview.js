// The colours of a draw at once: a table with the new colour of 52³ colours, looked up by the graphics card.
//
// The table is made by the same program as the exact tiles; between its entries colours are interpolated.

import { ask } from "./api.js";

const ENTRIES = 52;
const VERTEX = `#version 300 es
in vec2 place;
out vec2 at;
void main() { at = place * 0.5 + 0.5; gl_Position = vec4(place, 0.0, 1.0); }`;
const FRAGMENT = `#version 300 es
precision highp float;
precision highp sampler3D;
in vec2 at;
out vec4 colour;
uniform sampler2D picture;
uniform sampler3D colours;
void main() {
  vec4 plain = texture(picture, at);
  if (plain.a == 0.0) { colour = vec4(0.0); return; }
  vec3 place = clamp(plain.rgb / plain.a, 0.0, 1.0) * (${ENTRIES - 1}.0 / ${ENTRIES}.0) + 0.5 / ${ENTRIES}.0;
  colour = vec4(texture(colours, place).rgb * plain.a, plain.a);
}`;

export class ColourPreview {
  constructor(viewer) {
    this.viewer = viewer;
    this.active = false;
    this.tables = new Map(); // the last few, by digest
    viewer.addHandler("update-viewport", () => this.active && this.paint());
  }

  // Return the table of colours with a digest.
  async load(digest) {
    if (!this.tables.has(digest)) {
      const reply = await ask(`colours/${digest}.bin`);
      this.tables.set(digest, new Uint8Array(await reply.arrayBuffer()));
      if (this.tables.size > 8) this.tables.delete(this.tables.keys().next().value);
    }
    return this.tables.get(digest);
  }

  // Colour every frame with a table; null shows the plain colours.
  use(table) {
    if (!table) {
      this.stop();
      return;
    }
    if (!this.canvas) this.start();
    const gl = this.gl;
    gl.activeTexture(gl.TEXTURE1);
    gl.bindTexture(gl.TEXTURE_3D, this.colours);
    gl.pixelStorei(gl.UNPACK_ALIGNMENT, 1);
    gl.pixelStorei(gl.UNPACK_FLIP_Y_WEBGL, false);
    gl.texImage3D(gl.TEXTURE_3D, 0, gl.RGB8, ENTRIES, ENTRIES, ENTRIES, 0, gl.RGB, gl.UNSIGNED_BYTE, table);
    this.active = true;
    this.canvas.style.visibility = "visible";
    this.viewer.drawer.canvas.style.opacity = 0;
  }

  stop() {
    this.active = false;
    if (this.canvas) this.canvas.style.visibility = "hidden";
    if (this.viewer.drawer) this.viewer.drawer.canvas.style.opacity = 1;
  }

  start() {
    this.canvas = document.createElement("canvas");
    this.canvas.className = "preview";
    this.viewer.drawer.canvas.after(this.canvas);
    const gl = this.canvas.getContext("webgl2", { premultipliedAlpha: true, antialias: false });
    if (!gl) throw new Error("This browser has no WebGL 2: colours change when the exact tiles are there.");
    this.gl = gl;
    const program = gl.createProgram();
    for (const [kind, text] of [[gl.VERTEX_SHADER, VERTEX], [gl.FRAGMENT_SHADER, FRAGMENT]]) {
      const shader = gl.createShader(kind);
      gl.shaderSource(shader, text);
      gl.compileShader(shader);
      gl.attachShader(program, shader);
    }
    gl.linkProgram(program);
    gl.useProgram(program);
    gl.bindBuffer(gl.ARRAY_BUFFER, gl.createBuffer());
    gl.bufferData(gl.ARRAY_BUFFER, new Float32Array([-1, -1, 3, -1, -1, 3]), gl.STATIC_DRAW);
    const place = gl.getAttribLocation(program, "place");
    gl.enableVertexAttribArray(place);
    gl.vertexAttribPointer(place, 2, gl.FLOAT, false, 0, 0);
    this.picture = texture(gl, gl.TEXTURE_2D, gl.NEAREST);
    this.colours = texture(gl, gl.TEXTURE_3D, gl.LINEAR);
    gl.uniform1i(gl.getUniformLocation(program, "picture"), 0);
    gl.uniform1i(gl.getUniformLocation(program, "colours"), 1);
  }

  paint() {
    const { gl, canvas } = this;
    const from = this.viewer.drawer.canvas;
    if (canvas.width !== from.width || canvas.height !== from.height) {
      canvas.width = from.width;
      canvas.height = from.height;
    }
    gl.viewport(0, 0, canvas.width, canvas.height);
    gl.activeTexture(gl.TEXTURE0);
    gl.bindTexture(gl.TEXTURE_2D, this.picture);
    gl.pixelStorei(gl.UNPACK_FLIP_Y_WEBGL, true);
    gl.pixelStorei(gl.UNPACK_PREMULTIPLY_ALPHA_WEBGL, true);
    gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, gl.RGBA, gl.UNSIGNED_BYTE, from);
    gl.pixelStorei(gl.UNPACK_FLIP_Y_WEBGL, false);
    gl.pixelStorei(gl.UNPACK_PREMULTIPLY_ALPHA_WEBGL, false);
    gl.drawArrays(gl.TRIANGLES, 0, 3);
  }
}

function texture(gl, target, filter) {
  const made = gl.createTexture();
  gl.bindTexture(target, made);
  gl.texParameteri(target, gl.TEXTURE_MIN_FILTER, filter);
  gl.texParameteri(target, gl.TEXTURE_MAG_FILTER, filter);
  for (const side of [gl.TEXTURE_WRAP_S, gl.TEXTURE_WRAP_T, gl.TEXTURE_WRAP_R]) {
    if (target === gl.TEXTURE_3D || side !== gl.TEXTURE_WRAP_R) gl.texParameteri(target, side, gl.CLAMP_TO_EDGE);
  }
  return made;
}
