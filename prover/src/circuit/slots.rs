//! The slots that come from outside a segment: the model's weights and the states at its two ends. The lists here are also what a registration commits.

use crate::ir::SlotId;
use crate::shape::{Axis, Model, ModelShape};

/// How a slot is cut out of a tensor of the model.
#[derive(Clone, Debug)]
enum Cut {
    /// Element (i, j) of the slot is row `first` + i, column j of a matrix.
    Matrix {
        first: usize,
        rows: (Axis, usize),
        columns: (Axis, usize),
    },
    /// Element i is number (`first` + i) · `stride` + `offset`; every element is the only one of a tensor of one.
    Vector {
        first: usize,
        stride: usize,
        offset: usize,
        axis: (Axis, usize),
    },
}

#[derive(Clone, Debug)]
pub struct ModelSlot {
    /// The tensor's name, what part of it, and the blocks.
    pub name: String,
    pub log: usize,
    /// What a registration establishes; padding is zero.
    pub range: (i64, i64),
    tensor: String,
    cut: Cut,
}

/// A matrix in blocks: `weights[o][d]`, variables (o, d), and the multipliers of its rows `mul[o]`.
#[derive(Clone, Debug)]
pub struct Projection {
    pub weights: Vec<Vec<SlotId>>,
    pub mul: Vec<SlotId>,
}

#[derive(Clone, Debug)]
pub struct Conv {
    /// By tap, oldest first, and block.
    pub taps: [Vec<SlotId>; 4],
    pub bias: Vec<SlotId>,
}

#[derive(Clone, Debug)]
pub struct Layer {
    pub norm1: Vec<SlotId>,
    pub z: Projection,
    pub x: Projection,
    pub b: Projection,
    pub c: Projection,
    pub dt: Projection,
    pub conv_x: Conv,
    pub conv_b: Conv,
    pub conv_c: Conv,
    pub a: Vec<SlotId>,
    pub base: Vec<SlotId>,
    pub skip: Vec<SlotId>,
    pub norm2: Vec<SlotId>,
    pub out: Projection,
}

/// Where the weights are in the list of the model's slots, which are the first of a circuit.
#[derive(Clone, Debug)]
pub struct Weights {
    /// By block of tokens and of channels, variables (v, d).
    pub embedding: Vec<Vec<SlotId>>,
    pub layers: Vec<Layer>,
    pub norm_f: Vec<SlotId>,
}

/// The slots of a model, in order: embedding, layers, last norm.
pub fn model_slots(shape: &ModelShape) -> Vec<ModelSlot> {
    weights(shape).0
}

/// The values of the slots of `model_slots`.
pub fn model_values(model: &Model) -> Vec<Vec<i32>> {
    model_slots(&model.shape)
        .iter()
        .map(|slot| slot.values(model))
        .collect()
}

pub(crate) fn weights(shape: &ModelShape) -> (Vec<ModelSlot>, Weights) {
    let mut list = List(vec![]);
    let (d, e, heads, n) = (
        shape.d_axis(),
        shape.inner_axis(),
        shape.heads_axis(),
        shape.states_axis(),
    );
    let embedding = list.matrix("token_embd.weight", 0, shape.vocab_axis(), d);
    let layers = (0..shape.n_layers).map(|i| {
        let at = |name: &str| format!("blk.{i}.{name}");
        let (inner, states) = (shape.d_inner(), shape.d_state);
        let signed = (-127, 127);
        let norm1 = list.vector(&at("norm1.scale"), "", signed, (0, 1, 0), d);
        // Rows of in_proj: z, x, B, C, dt.
        let mut first = 0;
        let mut rows = |list: &mut List, axis: Axis, width: Axis, name: &str| {
            first += axis.size;
            list.linear(&at(name), first - axis.size, axis, width)
        };
        let [z, x, b, c, dt] = [e, e, n, n, heads].map(|axis| rows(&mut list, axis, d, "in_proj"));
        let mut conv = |first: usize, axis: Axis| Conv {
            taps: [0, 1, 2, 3]
                .map(|k| list.vector(&at("conv.weight"), &format!(".tap{k}"), signed, (first, 4, k), axis)),
            bias: list.vector(&at("conv.bias"), "", (-32767, 32767), (first, 1, 0), axis),
        };
        let (conv_x, conv_b, conv_c) = (conv(0, e), conv(inner, n), conv(inner + states, n));
        Layer {
            norm1,
            z,
            x,
            b,
            c,
            dt,
            conv_x,
            conv_b,
            conv_c,
            a: list.vector(&at("scan.A"), "", (0, 1 << 19), (0, 1, 0), heads),
            base: list.vector(&at("scan.base"), "", (-32767, 32767), (0, 1, 0), heads),
            skip: list.vector(&at("scan.skip"), "", signed, (0, 1, 0), heads),
            norm2: list.vector(&at("norm2.scale"), "", signed, (0, 1, 0), e),
            out: list.linear(&at("out_proj"), 0, d, e),
        }
    });
    let layers = layers.collect();
    let norm_f = list.vector("output_norm.scale", "", (-127, 127), (0, 1, 0), d);
    (
        list.0,
        Weights {
            embedding,
            layers,
            norm_f,
        },
    )
}

struct List(Vec<ModelSlot>);

impl List {
    fn push(&mut self, slot: ModelSlot) -> SlotId {
        self.0.push(slot);
        self.0.len() - 1
    }

    fn matrix(&mut self, tensor: &str, first: usize, rows: Axis, columns: Axis) -> Vec<Vec<SlotId>> {
        let mut slot = |o: usize, d: usize| {
            self.push(ModelSlot {
                name: format!("{tensor}.{first}.{o}.{d}"),
                log: rows.log + columns.log,
                range: (-127, 127),
                tensor: tensor.into(),
                cut: Cut::Matrix {
                    first,
                    rows: (rows, o),
                    columns: (columns, d),
                },
            })
        };
        (0..rows.blocks)
            .map(|o| (0..columns.blocks).map(|d| slot(o, d)).collect())
            .collect()
    }

    fn vector(
        &mut self,
        tensor: &str,
        part: &str,
        range: (i64, i64),
        (first, stride, offset): (usize, usize, usize),
        axis: Axis,
    ) -> Vec<SlotId> {
        let slot = |block: usize| ModelSlot {
            name: format!("{tensor}{part}.{first}.{block}"),
            log: axis.log,
            range,
            tensor: tensor.into(),
            cut: Cut::Vector {
                first,
                stride,
                offset,
                axis: (axis, block),
            },
        };
        (0..axis.blocks).map(|block| self.push(slot(block))).collect()
    }

    fn linear(&mut self, name: &str, first: usize, rows: Axis, columns: Axis) -> Projection {
        let weights = self.matrix(&format!("{name}.weight"), first, rows, columns);
        Projection {
            weights,
            mul: self.vector(&format!("{name}.mul"), "", (0, 255), (first, 1, 0), rows),
        }
    }
}

impl ModelSlot {
    /// What its variables number, outermost first: of each axis the block that lies here.
    pub fn axes(&self) -> Vec<(Axis, usize)> {
        match self.cut {
            Cut::Matrix { rows, columns, .. } => vec![rows, columns],
            Cut::Vector { axis, .. } => vec![axis],
        }
    }

    pub fn values(&self, model: &Model) -> Vec<i32> {
        let tensor = model.tensor(&self.tensor);
        let mut out = vec![0; 1 << self.log];
        match self.cut {
            Cut::Matrix {
                first,
                rows: (rows, o),
                columns: (columns, d),
            } => {
                for (i, row) in rows.block(o) {
                    for (j, column) in columns.block(d) {
                        out[row << columns.log | column] = tensor[(first + i) * columns.size + j];
                    }
                }
            }
            Cut::Vector {
                first,
                stride,
                offset,
                axis: (axis, block),
            } => {
                for (i, at) in axis.block(block) {
                    out[at] = if tensor.len() == 1 {
                        tensor[0]
                    } else {
                        tensor[(first + i) * stride + offset]
                    };
                }
            }
        }
        out
    }
}

/// What passes from one segment to the next: a slot of both `StateIn` and `StateOut`.
#[derive(Clone, Debug)]
pub struct StateSlot {
    pub name: String,
    pub log: usize,
    pub range: (i64, i64),
}

/// Where a layer's state is in the list of the state's slots: the last vectors before the convolution, newest first, by block; h by block of heads,
/// variables (head, p, n).
#[derive(Clone, Debug)]
pub struct LayerState {
    pub x: [Vec<usize>; 3],
    pub b: [Vec<usize>; 3],
    pub c: [Vec<usize>; 3],
    pub h: Vec<usize>,
}

impl LayerState {
    /// The same layer's slots when the list begins at slot `first` of a circuit.
    pub fn at(&self, first: SlotId) -> LayerState {
        let shift = |list: &Vec<usize>| list.iter().map(|i| i + first).collect();
        let taps = |taps: &[Vec<usize>; 3]| [shift(&taps[0]), shift(&taps[1]), shift(&taps[2])];
        LayerState {
            x: taps(&self.x),
            b: taps(&self.b),
            c: taps(&self.c),
            h: shift(&self.h),
        }
    }
}

pub fn state_slots(shape: &ModelShape) -> Vec<StateSlot> {
    states(shape).0
}

pub(super) fn states(shape: &ModelShape) -> (Vec<StateSlot>, Vec<LayerState>) {
    let mut list = vec![];
    let (e, n) = (shape.inner_axis(), shape.states_axis());
    let layers = (0..shape.n_layers).map(|i| {
        let mut blocks = |name: &str, axis: Axis, more: usize, range: (i64, i64)| -> Vec<usize> {
            let start = list.len();
            list.extend((0..axis.blocks).map(|block| StateSlot {
                name: format!("blk.{i}.{name}.{block}"),
                log: axis.log + more,
                range,
            }));
            (start..list.len()).collect()
        };
        let mut taps = |name: &str, axis: Axis| {
            [1, 2, 3].map(|back| blocks(&format!("{name}.last{back}"), axis, 0, (-32767, 32767)))
        };
        let (x, b, c) = (taps("x", e), taps("B", n), taps("C", n));
        LayerState {
            x,
            b,
            c,
            h: blocks("h", e, n.log, (-super::scan::MAX_STATE, super::scan::MAX_STATE)),
        }
    });
    let layers = layers.collect();
    (list, layers)
}
