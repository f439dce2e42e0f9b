//! Gives libFuzzer's inputs to target `check_vhdx`; what it checks is in `tests/fuzzing`.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    sitepair_fuzzing::Target::named("check_vhdx").expect("it is in the list").run(input);
});
