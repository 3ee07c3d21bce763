//! ARITHMETIC section 8: one layer.

use super::activation::activation;
use super::builder::Builder;
use super::conv::conv;
use super::linear::{linear, residual};
use super::norm::norm;
use super::scan::{gate, modulation, output, state, ScanAxes};
use super::slots::{Layer, LayerState};
use super::{Ends, Tensor, MAX_GATE};
use crate::shape::ModelShape;

/// From residual to residual.
pub fn layer(b: &mut Builder, shape: &ModelShape, i: usize, w: &Layer, r: &Tensor, ends: &Ends<LayerState>) -> Tensor {
    let at = |name: &str| format!("blk.{i}.{name}");
    let (inner, heads, n) = (shape.inner_axis(), shape.heads_axis().log, shape.states_axis().log);
    let axes = ScanAxes {
        head: heads,
        p: inner.group_log,
        n,
    };
    let mantissa = shape.norm_mantissa;

    let u = norm(b, &at("norm1"), r, &w.norm1, shape.d_model, mantissa);
    let mut project = |name: &str, w, log| linear(b, &at(name), w, log, &u, shape.in_proj_shift[i]);
    let z = project("z", &w.z, inner.log);
    let x = project("x_in", &w.x, inner.log);
    let input = project("B_in", &w.b, n);
    let out = project("C_in", &w.c, n);
    let dt = project("dt", &w.dt, heads);

    let x = conv(b, &at("conv.x"), &x, &w.conv_x, &ends.map(|e| e.x.clone()));
    let input = conv(b, &at("conv.B"), &input, &w.conv_b, &ends.map(|e| e.b.clone()));
    let out = conv(b, &at("conv.C"), &out, &w.conv_c, &ends.map(|e| e.c.clone()));
    let x = activation(b, &at("x"), shape.activation, &x, 5, 127);
    let input = activation(b, &at("B"), shape.activation, &input, 3, 31);
    let out = activation(b, &at("C"), shape.activation, &out, 3, 31);

    let m = modulation(b, &at("m"), &dt, &w.a, &w.base);
    let h = state(
        b,
        &at("state"),
        axes,
        &shape.k[i],
        &m,
        &x,
        &input,
        &ends.map(|e| e.h.clone()),
    );
    let y = output(b, &at("y"), axes, &h, &out, &x, &w.skip);
    let g = activation(b, &at("gate"), shape.gate, &z, 8, MAX_GATE);
    let o = gate(b, &at("gated"), &y, &g);

    let v = norm(b, &at("norm2"), &o, &w.norm2, shape.d_inner(), mantissa);
    let added = linear(b, &at("out_proj"), &w.out, r.log, &v, shape.out_proj_shift[i]);
    residual(b, &at("resid"), r, &added)
}
