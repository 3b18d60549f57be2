/** The stage's shaders. Few and plain: they also run on machines that draw without a GPU. */

// The place of each body as the three rows of its matrix: uniforms, which are fast where there is no GPU, or a texture for robots
// with so many bodies that they do not fit.
const PLACE_VERTEX = `
precision highp float;
precision highp sampler2D;
uniform mat4 viewProjection;
invariant gl_Position; // two passes meet at the same depth
in vec4 place;
#ifdef BODIES
uniform vec4 bodies[3 * BODIES];
#define ROW(i) bodies[3 * body + i]
#else
uniform sampler2D bodies;
#define ROW(i) texelFetch(bodies, ivec2(i, body), 0)
#endif
`;

/** `setBack`: m, by which the depth lies behind the surface, so that a ghost that agrees with the robot is hidden in it. */
export const SURFACE_VERTEX = `${PLACE_VERTEX}
uniform float setBack;
uniform mat4 projectionMatrix;
uniform vec3 cameraPosition;
in vec4 normal;
in vec4 colour;
out vec3 vNormal;
out vec3 vToCamera;
out vec3 vColour;
void main() {
  int body = int(place.w);
  vec4 p = vec4(place.xyz, 1.0);
  vec4 a = ROW(0), b = ROW(1), c = ROW(2);
  vec3 world = vec3(dot(a, p), dot(b, p), dot(c, p));
  vNormal = vec3(dot(a.xyz, normal.xyz), dot(b.xyz, normal.xyz), dot(c.xyz, normal.xyz));
  vToCamera = cameraPosition - world;
  vColour = colour.rgb;
  gl_Position = viewProjection * vec4(world, 1.0);
  gl_Position.z = (gl_Position.z - projectionMatrix[2][2] * setBack) / (gl_Position.w + setBack) * gl_Position.w;
}`;

/** The depth of `SURFACE_VERTEX` alone. */
export const DEPTH_VERTEX = `${PLACE_VERTEX}
uniform float setBack;
uniform mat4 projectionMatrix;
void main() {
  int body = int(place.w);
  vec4 p = vec4(place.xyz, 1.0);
  gl_Position = viewProjection * vec4(dot(ROW(0), p), dot(ROW(1), p), dot(ROW(2), p), 1.0);
  gl_Position.z = (gl_Position.z - projectionMatrix[2][2] * setBack) / (gl_Position.w + setBack) * gl_Position.w;
}`;

export const DEPTH_FRAGMENT = `
precision mediump float;
out vec4 outColour;
void main() { outColour = vec4(0.0); }`;

export const SURFACE_FRAGMENT = `
precision mediump float;
in vec3 vNormal;
in vec3 vToCamera;
in vec3 vColour;
uniform vec3 rim;
uniform float dimming;
uniform vec3 background;
out vec4 outColour;
void main() {
  vec3 n = normalize(vNormal);
  vec3 v = normalize(vToCamera);
  float facing = dot(n, v);
  if (facing < 0.0) { n = -n; facing = -facing; }
  float key = max(0.0, dot(n, vec3(0.37, 0.28, 0.886)));
  float fill = max(0.0, dot(n, vec3(-0.62, -0.55, 0.56)));
  vec3 light = vec3(0.30, 0.31, 0.34) + 0.10 * n.z + 0.50 * key * vec3(1.0, 0.98, 0.94)
    + 0.16 * fill * vec3(0.86, 0.93, 1.0) + 0.20 * facing;
  vec3 half_ = normalize(v + vec3(0.37, 0.28, 0.886));
  float gloss = pow(max(0.0, dot(n, half_)), 28.0) * 0.16;
  float edge = pow(1.0 - facing, 3.0);
  vec3 c = (vColour * 0.94 + 0.05) * light + gloss;
  c = mix(c, rim, edge * 0.42);
  outColour = vec4(mix(c, background, dimming), 1.0);
}`;

export const GHOST_FRAGMENT = `
precision mediump float;
in vec3 vNormal;
in vec3 vToCamera;
uniform vec3 tint;
out vec4 outColour;
void main() {
  float facing = abs(dot(normalize(vNormal), normalize(vToCamera)));
  float edge = pow(1.0 - facing, 2.0);
  outColour = vec4(tint, 0.26 + 0.5 * edge);
}`;

/** Throws the surface onto the floor along the light. */
export const SHADOW_VERTEX = `${PLACE_VERTEX}
void main() {
  int body = int(place.w);
  vec4 p = vec4(place.xyz, 1.0);
  vec3 world = vec3(dot(ROW(0), p), dot(ROW(1), p), dot(ROW(2), p));
  world.xy -= max(world.z, 0.0) * vec2(0.37, 0.28) / 0.886;
  gl_Position = viewProjection * vec4(world.xy, 0.0, 1.0);
}`;

export const SHADOW_FRAGMENT = `
precision mediump float;
uniform float darkness;
out vec4 outColour;
void main() { outColour = vec4(0.0, 0.0, 0.0, darkness); }`;

export const FLOOR_VERTEX = `
precision highp float;
uniform mat4 viewProjection;
uniform vec2 centre;
uniform float extent;
in vec3 position;
out vec2 vPlace;
out vec2 vFromCentre;
void main() {
  vFromCentre = position.xy;
  vPlace = centre + position.xy * extent;
  gl_Position = viewProjection * vec4(vPlace, 0.0, 1.0);
}`;

export const FLOOR_FRAGMENT = `
precision highp float;
in vec2 vPlace;
in vec2 vFromCentre;
uniform float spacing;
uniform vec3 background;
uniform vec3 ground;
uniform vec3 line;
out vec4 outColour;
float grid(vec2 p, float width) {
  vec2 w = max(fwidth(p), vec2(1e-6));
  vec2 d = abs(fract(p - 0.5) - 0.5) / w;
  // Lines closer than a few pixels would flicker.
  vec2 strength = clamp(vec2(width + 0.5) - d, 0.0, 1.0) * clamp(1.5 - 3.0 * w, 0.0, 1.0);
  return max(strength.x, strength.y);
}
void main() {
  float fade = 1.0 - smoothstep(0.08, 1.0, length(vFromCentre));
  float strength = max(0.45 * grid(vPlace / spacing, 0.5), grid(vPlace / (spacing * 5.0), 0.75));
  vec3 c = mix(ground, line, strength);
  outColour = vec4(mix(background, c, fade), 1.0);
}`;

/** An arrow along z of length 1, whose head keeps its size. The shaft's vertices have z 0 or 1; the head's are beyond 2. */
export const ARROW_VERTEX = `
precision highp float;
uniform mat4 viewProjection;
uniform vec3 origin;
uniform float length_;
uniform float scale;
in vec3 position;
in vec3 normal;
out float vLight;
void main() {
  float head = min(1.0, length_ / (3.2 * scale));
  vec3 p = position;
  if (p.z >= 2.0) {
    p.xy *= scale * head;
    p.z = length_ - 2.2 * scale * head * (3.0 - p.z);
  } else {
    p.xy *= scale * (0.5 + 0.5 * head);
    p.z *= max(0.0, length_ - 2.2 * scale * head);
  }
  vLight = 0.82 + 0.18 * dot(normal, normalize(vec3(0.5, 0.4, 0.75)));
  gl_Position = viewProjection * vec4(origin + p, 1.0);
}`;

export const ARROW_FRAGMENT = `
precision mediump float;
in float vLight;
uniform vec3 tint;
out vec4 outColour;
void main() { outColour = vec4(tint * vLight, 1.0); }`;
