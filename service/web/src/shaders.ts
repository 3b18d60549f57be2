/** The stage's shaders. Few and plain: they also run on machines that draw without a GPU. */

// The place of each body: two texels a body, its position and its quaternion (xyzw).
const PLACE_VERTEX = `
precision highp float;
precision highp sampler2D;
uniform sampler2D bodies;
uniform mat4 viewMatrix;
uniform mat4 projectionMatrix;
in vec4 place;
vec3 rotateBy(vec4 q, vec3 v) { return v + 2.0 * cross(q.xyz, cross(q.xyz, v) + q.w * v); }
void readBody(out vec3 origin, out vec4 turn) {
  int body = int(place.w);
  origin = texelFetch(bodies, ivec2(0, body), 0).xyz;
  turn = texelFetch(bodies, ivec2(1, body), 0);
}
`;

/** `setBack`: m, by which the depth lies behind the surface, so that a ghost that agrees with the robot is hidden in it. */
export const SURFACE_VERTEX = `${PLACE_VERTEX}
uniform float setBack;
in vec4 normal;
in vec4 colour;
out vec3 vNormal;
out vec3 vToCamera;
out vec3 vColour;
uniform vec3 cameraPosition;
void main() {
  vec3 origin; vec4 turn;
  readBody(origin, turn);
  vec3 world = origin + rotateBy(turn, place.xyz);
  vNormal = rotateBy(turn, normal.xyz);
  vToCamera = cameraPosition - world;
  vColour = colour.rgb;
  vec4 view = viewMatrix * vec4(world, 1.0);
  gl_Position = projectionMatrix * view;
  view.z -= setBack;
  vec4 behind = projectionMatrix * view;
  gl_Position.z = behind.z / behind.w * gl_Position.w;
}`;

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
in vec3 vColour;
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
  vec3 origin; vec4 turn;
  readBody(origin, turn);
  vec3 world = origin + rotateBy(turn, place.xyz);
  world.xy -= max(world.z, 0.0) * vec2(0.37, 0.28) / 0.886;
  world.z = 0.0;
  gl_Position = projectionMatrix * viewMatrix * vec4(world, 1.0);
}`;

export const SHADOW_FRAGMENT = `
precision mediump float;
uniform float darkness;
out vec4 outColour;
void main() { outColour = vec4(0.0, 0.0, 0.0, darkness); }`;

export const FLOOR_VERTEX = `
precision highp float;
uniform mat4 viewMatrix;
uniform mat4 projectionMatrix;
uniform vec2 centre;
uniform float extent;
in vec3 position;
out vec2 vPlace;
out vec2 vFromCentre;
void main() {
  vFromCentre = position.xy;
  vPlace = centre + position.xy * extent;
  gl_Position = projectionMatrix * viewMatrix * vec4(vPlace, 0.0, 1.0);
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
uniform mat4 viewMatrix;
uniform mat4 projectionMatrix;
uniform vec3 origin;
uniform float length_;
uniform float scale;
in vec3 position;
in vec3 normal;
out float vLight;
void main() {
  float head = min(1.0, length_ / (0.9 * scale));
  vec3 p = position;
  if (p.z >= 2.0) {
    p.xy *= scale * head;
    p.z = length_ - 0.3 * scale * head * (3.0 - p.z);
  } else {
    p.xy *= scale * (0.5 + 0.5 * head);
    p.z *= max(0.0, length_ - 0.3 * scale * head);
  }
  vLight = 0.82 + 0.18 * dot(normal, normalize(vec3(0.5, 0.4, 0.75)));
  gl_Position = projectionMatrix * viewMatrix * vec4(origin + p, 1.0);
}`;

export const ARROW_FRAGMENT = `
precision mediump float;
in float vLight;
uniform vec3 tint;
out vec4 outColour;
void main() { outColour = vec4(tint * vLight, 1.0); }`;
