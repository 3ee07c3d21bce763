//! What libFuzzer calls. `FUZZ_TARGET` names the target while this is compiled.

mod targets;

use std::ffi::c_int;

/// # Safety
///
/// The pointer points to so many bytes.
#[no_mangle]
pub unsafe extern "C" fn LLVMFuzzerTestOneInput(data: *const u8, size: usize) -> c_int {
    let (_, target) = targets::TARGETS
        .iter()
        .find(|(name, _)| *name == env!("FUZZ_TARGET"))
        .unwrap();
    // A panic does not get across: it aborts, and libFuzzer sees that.
    target(match size {
        0 => &[],
        // SAFETY: as promised by the caller.
        _ => unsafe { std::slice::from_raw_parts(data, size) },
    });
    0
}
