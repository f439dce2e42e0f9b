//! Gives libFuzzer's inputs to target `vhdx_child`; what it checks is in `tests/fuzzing`.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    sitepair_fuzzing::Target::named("vhdx_child").expect("it is in the list").run(input);
});
