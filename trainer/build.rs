//! Compiles the kernels, on x86-64 once for each of three instruction sets.

use std::env::var;

fn build() -> cc::Build {
    let mut b = cc::Build::new();
    b.cpp(true)
        .std("c++20")
        .opt_level(3)
        .flag_if_supported("-Wall")
        .flag_if_supported("-Wextra")
        .flag_if_supported("-fvisibility=hidden")
        .flag_if_supported("-fopenmp-simd")
        // Neither changes a result; without them square roots and roundings are not turned into vector code.
        .flag_if_supported("-fno-math-errno")
        .flag_if_supported("-fno-trapping-math");
    b
}

fn main() {
    build()
        .file("src/kernels_baseline.cpp")
        .compile("mamba_integer_train_baseline");
    let mut interface = build();
    if var("CARGO_CFG_TARGET_ARCH").as_deref() == Ok("x86_64") {
        build()
            .flag("-march=x86-64-v3")
            .file("src/kernels_v3.cpp")
            .compile("mamba_integer_train_v3");
        build()
            .flag("-march=x86-64-v4")
            .flag_if_supported("-mprefer-vector-width=512")
            .file("src/kernels_v4.cpp")
            .compile("mamba_integer_train_v4");
        interface.define("MI_X86", None);
    }
    interface.file("src/kernels.cpp").compile("mamba_integer_train");
    println!("cargo:rerun-if-changed=src");
}
