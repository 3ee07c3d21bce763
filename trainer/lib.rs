//! The training kernels of `src/kernels.h`. Training works on tensors that PyTorch owns, so what this crate gives is where the functions are;
//! `mamba_integer/nn/fused.py` calls them by ctypes and is the only one who does.

extern "C" {
    fn mi_train_norm();
    fn mi_train_norm_backward();
    fn mi_train_requantise();
    fn mi_train_residual();
    fn mi_train_mixer();
    fn mi_train_mixer_backward();
    fn mi_train_cross_entropy();
}

/// Name and address of every function of `src/kernels.h`.
pub fn functions() -> [(&'static str, usize); 7] {
    [
        ("norm", mi_train_norm as *const () as usize),
        ("norm_backward", mi_train_norm_backward as *const () as usize),
        ("requantise", mi_train_requantise as *const () as usize),
        ("residual", mi_train_residual as *const () as usize),
        ("mixer", mi_train_mixer as *const () as usize),
        ("mixer_backward", mi_train_mixer_backward as *const () as usize),
        ("cross_entropy", mi_train_cross_entropy as *const () as usize),
    ]
}
