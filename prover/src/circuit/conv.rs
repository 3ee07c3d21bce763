//! ARITHMETIC section 6: the convolution over the last four steps, and what of it passes to the next segment.

use super::builder::Builder;
use super::{carry, over_time, slots, Ends, Tensor};
use crate::ir::{Kernel, SlotId};

/// c = sat16(rshift(Σ_k w_k · p_{t − 3 + k}, 6) + bias). `ends`: the last three vectors before and after the segment, newest first, by block.
pub fn conv(b: &mut Builder, name: &str, p: &Tensor, w: &slots::Conv, ends: &Ends<[Vec<SlotId>; 3]>) -> Tensor {
    let (log, steps) = (p.log, b.steps());
    let slots = (0..p.slots.len()).map(|block| {
        let table = b.table(format!("{name}.{block}"), log + steps);
        let over_time = |kernel| over_time(kernel, p.slots[block], log, steps);
        let mut pre = vec![];
        for (k, taps) in w.taps.iter().enumerate() {
            let lag = 3 - k;
            let shifted = if lag == 0 {
                b.own(table, p.slots[block])
            } else {
                let before =
                    |taps: &[Vec<SlotId>; 3]| (0..lag).map(|t| carry(t, taps[lag - t - 1][block], log)).collect();
                let carries = ends.before.as_ref().map_or(vec![], before);
                b.sum(
                    table,
                    &format!("lag{lag}"),
                    over_time(Kernel::Lag(lag)),
                    carries,
                    (-32767, 32767),
                )
                .0
            };
            pre.push((1, vec![b.constant(table, taps[block]), shifted]));
        }
        pre.push((64, vec![b.constant(table, w.bias[block])]));
        pre.push((32, vec![]));
        if let Some(after) = &ends.after {
            for (back, taps) in after.iter().enumerate() {
                b.link(
                    table,
                    &format!("last{}", back + 1),
                    over_time(Kernel::Last { back }),
                    taps[block],
                );
            }
        }
        let reach = (4 * 127 * 32767 + 64 * 32767 + 32) >> 6;
        b.round_saturate(table, "c", pre, 6, 32767, reach).1
    });
    Tensor {
        slots: slots.collect(),
        log,
    }
}
