//! Compiles the C++ sources of this crate into it.

/// Every source of the library; CMakeLists.txt has the same list.
const SOURCES: [&str; 16] = [
    "src/bytes.cpp",
    "src/capi.cpp",
    "src/cpu.cpp",
    "src/device.cpp",
    "src/file.cpp",
    "src/kernels.cpp",
    "src/model.cpp",
    "src/ops.cpp",
    "src/ops_avx2.cpp",
    "src/ops_avx512.cpp",
    "src/ops_neon.cpp",
    "src/pool.cpp",
    "src/sampler.cpp",
    "src/session.cpp",
    "src/sha256.cpp",
    "src/state.cpp",
];

fn main() {
    cc::Build::new()
        .cpp(true)
        .std("c++20")
        // Whatever cargo's profile says: an unoptimised engine is of no use to anyone.
        .opt_level(3)
        .include("include")
        .include("src")
        .flag_if_supported("-Wall")
        .flag_if_supported("-Wextra")
        .flag_if_supported("-Wconversion")
        .flag_if_supported("-Wshadow")
        .flag_if_supported("-fvisibility=hidden")
        .files(SOURCES)
        .compile("mamba_integer_engine_cpp");
    println!("cargo:rerun-if-changed=src");
    println!("cargo:rerun-if-changed=include");
}
