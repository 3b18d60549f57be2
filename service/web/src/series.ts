/** The quantities of a rollout that are drawn over time, from the frames that have been fetched. */

import type { Replay } from "./replay.js";
import type { Scene } from "./scene.js";

/** A value a frame; NaN where the frame has not been fetched. */
export type Series = Float32Array;

/** What is known of a rollout without its robot. */
export class ForceSeries {
  constructor(protected readonly replay: Replay) {}

  /** Normal force on all channels, over the weight. */
  load(): Series {
    return this.scale("sum_fn_per_frame", 1 / this.replay.rollout.weight_n);
  }

  /** The harness's force, over the weight. */
  harness(): Series {
    return this.scale("stab_force_per_frame", 1 / this.replay.rollout.weight_n);
  }

  /** 1 while a channel touches the ground. */
  contact(channel: number): Series {
    return this.pick("foot_contacts", channel);
  }

  protected blank(): Series {
    return new Float32Array(this.replay.frames).fill(Number.NaN);
  }

  protected scale(name: "sum_fn_per_frame" | "stab_force_per_frame", factor: number): Series {
    return this.map(name, (data, row) => data[row]! * factor);
  }

  protected pick(name: Parameters<Replay["column"]>[0], column: number): Series {
    return this.map(name, (data, row) => data[row + column]!);
  }

  protected map(name: Parameters<Replay["column"]>[0], value: (data: Float32Array, row: number) => number): Series {
    const column = this.replay.column(name);
    if (column === null) return this.blank();
    const { data, width } = column;
    const series = new Float32Array(this.replay.frames);
    for (let frame = 0; frame < series.length; frame++) series[frame] = value(data, frame * width);
    return series;
  }
}

export class RolloutSeries extends ForceSeries {
  constructor(
    replay: Replay,
    private readonly scene: Scene,
  ) {
    super(replay);
  }

  /** m, of the root. */
  height(): Series {
    return this.pick("qpos", this.scene.meta.root_qpos + 2);
  }

  clipHeight(): Series {
    return this.pick("reference_root_pos", 2);
  }

  /** Degrees between the root's up axis and the vertical. */
  tilt(): Series {
    const root = this.scene.meta.root_qpos;
    return this.map("qpos", (data, row) => tiltOf(data[row + root + 4]!, data[row + root + 5]!));
  }

  clipTilt(): Series {
    return this.map("reference_root_rot", (data, row) => tiltOf(data[row]!, data[row + 1]!));
  }

  /** rad, or m of a slide joint. */
  joint(joint: number): Series {
    return this.pick("qpos", this.scene.jointAdr[joint]!);
  }

  clipJoint(joint: number): Series {
    return this.pick("reference_dof_pos", joint);
  }

  /** Share of its force limit that a joint gets. What an actuator gives beyond a joint's limit MuJoCo cuts off, and so is 1 here. */
  torque(joint: number): Series {
    const limit = this.scene.meta.force_limit[joint];
    const column = this.scene.actuators[joint]!;
    if (limit === null || limit === undefined) return this.blank();
    return this.map("actuator_force", (data, row) => Math.min(1, Math.abs(data[row + column]!) / limit));
  }

  /** The greatest share of all joints. */
  peakTorque(): Series {
    const limits = this.scene.meta.force_limit;
    const columns = this.scene.actuators;
    return this.map("actuator_force", (data, row) => {
      let peak = Number.NaN;
      for (let joint = 0; joint < limits.length; joint++) {
        const limit = limits[joint];
        if (limit === null || limit === undefined) continue;
        const share = Math.abs(data[row + columns[joint]!]!) / limit;
        if (!(share <= peak)) peak = share;
      }
      return Math.min(1, peak);
    });
  }

  /** 1 while the foot of a channel stands in the clip. */
  clipContact(channel: number): Series {
    return this.pick("reference_contacts", this.scene.channelFoot[channel] ?? channel);
  }

  /** The joints from the worst to the best, with the root mean square difference from the clip in rad. */
  rankJoints(): { joint: number; rmse: number }[] {
    return this.scene.meta.joints
      .map((_, joint) => {
        const rollout = this.joint(joint);
        const clip = this.clipJoint(joint);
        let sum = 0;
        let count = 0;
        for (let frame = 0; frame < rollout.length; frame++) {
          const difference = rollout[frame]! - clip[frame]!;
          if (Number.isNaN(difference)) continue;
          sum += difference * difference;
          count++;
        }
        return { joint, rmse: count > 0 ? Math.sqrt(sum / count) : 0 };
      })
      .sort((a, b) => b.rmse - a.rmse || a.joint - b.joint);
  }
}

/** Degrees between z and the up axis of a root, from the x and y of its unit quaternion. */
export function tiltOf(x: number, y: number): number {
  return (Math.acos(Math.max(-1, Math.min(1, 1 - 2 * (x * x + y * y)))) * 180) / Math.PI;
}
