/** The buttons below the picture, and the keys of the page. */

import { type Clock, SPEEDS } from "./clock.js";
import { build, copyText, icon, isTyping, setText } from "./dom.js";

export interface Actions {
  readonly toggleGhost: () => boolean;
  readonly toggleFollowing: () => boolean;
  readonly look: (view: "home" | "front" | "side" | "top") => void;
  readonly turn: (azimuth: number, elevation: number) => void;
  readonly zoom: (factor: number) => void;
  /** Repeats what lies about this frame, or ends that. */
  readonly toggleLoop: () => void;
}

const KEYS: readonly (readonly [string, string])[] = [
  ["Space", "play or pause"],
  ["← →", "a frame back or on"],
  ["Shift ← →", "a second back or on"],
  ["Home End", "first or last frame"],
  [", .", "slower or faster"],
  ["l", "repeat the segment, or the part that the charts show"],
  ["g", "show or hide the clip's ghost"],
  ["c", "camera follows the robot, or stays"],
  ["1 2 3 0", "from the front, the side, above; first view"],
  ["↑ ↓ a d", "move the camera"],
  ["+ -", "nearer or farther"],
  ["f", "copy a link to this frame"],
  ["?", "this list"],
];

export class Controls {
  readonly element: HTMLElement;
  private readonly playButton: HTMLButtonElement;
  private readonly loopButton: HTMLButtonElement;
  private readonly ghostButton: HTMLButtonElement;
  private readonly followButton: HTMLButtonElement;
  private readonly speed: HTMLSelectElement;
  private readonly notice = build("span", { class: "replay-notice", role: "status" });
  private readonly help: HTMLDialogElement;
  private noticeTimer = 0;

  constructor(
    private readonly clock: Clock,
    private readonly actions: Actions,
    private readonly linkToFrame: (() => string) | null,
  ) {
    const button = (label: string, content: Node | string, click: () => void, attributes = {}) =>
      build("button", { type: "button", "aria-label": label, title: label, click, ...attributes }, content);
    this.playButton = button("Play", icon("play"), () => clock.toggle(), { class: "is-main", "data-action": "play" });
    this.loopButton = button("Repeat the segment, or what the charts show", icon("loop"), () => actions.toggleLoop(), {
      "aria-pressed": "false",
      "data-action": "loop",
    });
    this.ghostButton = button("Clip's ghost", "Ghost", () => this.pressGhost(), {
      "aria-pressed": "true",
      "data-action": "ghost",
    });
    this.followButton = button("Camera follows the robot", "Follow", () => this.pressFollow(), {
      "aria-pressed": "true",
      "data-action": "follow",
    });
    this.speed = build("select", { "aria-label": "Speed", "data-action": "speed" });
    for (const speed of SPEEDS) this.speed.append(build("option", { value: speed }, `${speed}×`));
    this.speed.value = String(clock.speed);
    this.speed.addEventListener("change", () => clock.setSpeed(Number(this.speed.value)));
    this.help = this.buildHelp();
    const views = (["front", "side", "top"] as const).map((view) =>
      button(`From the ${view}`, view[0]!.toUpperCase() + view.slice(1), () => actions.look(view), {
        "data-action": `view-${view}`,
      }),
    );
    this.element = build(
      "div",
      { class: "replay-controls", role: "group", "aria-label": "Replay" },
      button("A frame back", icon("back"), () => clock.step(-1), { "data-action": "back" }),
      this.playButton,
      button("A frame on", icon("forward"), () => clock.step(1), { "data-action": "forward" }),
      this.speed,
      this.loopButton,
      build("span", { class: "replay-gap" }),
      this.ghostButton,
      this.followButton,
      build("span", { class: "replay-views", role: "group", "aria-label": "Camera" }, ...views),
      linkToFrame === null
        ? null
        : button("Copy a link to this frame", "Link", () => void this.copyLink(), { "data-action": "link" }),
      button("Keys", "?", () => this.help.showModal(), { "data-action": "keys" }),
      this.notice,
      this.help,
    );
    document.addEventListener("keydown", (event) => this.press(event));
    this.update();
  }

  update(): void {
    const { playing, speed, loop } = this.clock;
    const label = playing ? "Pause" : "Play";
    if (this.playButton.getAttribute("aria-label") !== label) {
      this.playButton.setAttribute("aria-label", label);
      this.playButton.title = label;
      this.playButton.replaceChildren(icon(playing ? "pause" : "play"));
    }
    if (document.activeElement !== this.speed) this.speed.value = String(speed);
    this.loopButton.setAttribute("aria-pressed", String(loop !== null));
  }

  /** Says something for a few seconds. */
  announce(text: string): void {
    setText(this.notice, text);
    clearTimeout(this.noticeTimer);
    this.noticeTimer = window.setTimeout(() => setText(this.notice, ""), 4000);
  }

  private pressGhost(): void {
    this.ghostButton.setAttribute("aria-pressed", String(this.actions.toggleGhost()));
  }

  private pressFollow(): void {
    this.followButton.setAttribute("aria-pressed", String(this.actions.toggleFollowing()));
  }

  private async copyLink(): Promise<void> {
    if (this.linkToFrame === null) return;
    const link = this.linkToFrame();
    const isCopied = await copyText(link);
    this.announce(isCopied ? `Link to frame ${this.clock.frame} copied.` : `Copy this link: ${link}`);
  }

  private buildHelp(): HTMLDialogElement {
    const list = build("dl", { class: "replay-keys" });
    for (const [keys, what] of KEYS) {
      const names = keys.split(" ").map((key) => build("kbd", {}, key));
      list.append(build("dt", {}, ...names), build("dd", {}, what));
    }
    const close = build("button", { type: "button", click: () => this.help.close() }, "Close");
    return build("dialog", { class: "replay-help", "aria-label": "Keys" }, build("h2", {}, "Keys"), list, close);
  }

  private press(event: KeyboardEvent): void {
    if (event.ctrlKey || event.metaKey || event.altKey || isTyping(event.target)) return;
    const { clock, actions } = this;
    const second = Math.max(1, Math.round(1 / clock.dt));
    const step = event.shiftKey ? second : 1;
    const bindings: Record<string, () => void> = {
      ArrowLeft: () => clock.step(-step),
      ArrowRight: () => clock.step(step),
      Home: () => clock.seek(0),
      End: () => clock.seek(clock.frames - 1),
      ",": () => this.changeSpeed(-1),
      ".": () => this.changeSpeed(1),
      l: () => actions.toggleLoop(),
      g: () => this.pressGhost(),
      c: () => this.pressFollow(),
      f: () => void this.copyLink(),
      "0": () => actions.look("home"),
      "1": () => actions.look("front"),
      "2": () => actions.look("side"),
      "3": () => actions.look("top"),
      a: () => actions.turn(-0.15, 0),
      d: () => actions.turn(0.15, 0),
      "+": () => actions.zoom(1 / 1.15),
      "=": () => actions.zoom(1 / 1.15),
      "-": () => actions.zoom(1.15),
      "?": () => this.help.showModal(),
    };
    // Up and down scroll the page, and a space presses a button, unless the picture or the time line has the focus.
    const isOnStage = event.target instanceof Element && event.target.closest("[data-replay] canvas") !== null;
    if (isOnStage) {
      bindings.ArrowUp = () => actions.turn(0, 0.1);
      bindings.ArrowDown = () => actions.turn(0, -0.1);
    }
    const isOnButton =
      event.target instanceof Element && event.target.closest("button, summary, input, select, textarea") !== null;
    if (!isOnButton) bindings[" "] = () => clock.toggle();
    const action = bindings[event.key];
    if (action === undefined) return;
    event.preventDefault();
    action();
  }

  private changeSpeed(by: number): void {
    const at = SPEEDS.findIndex((speed) => speed >= this.clock.speed);
    const speed = SPEEDS[Math.min(SPEEDS.length - 1, Math.max(0, at + by))]!;
    this.clock.setSpeed(speed);
    this.announce(`Speed ${speed}×`);
  }
}
