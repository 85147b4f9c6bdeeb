//! Compiles the one C function pair that makes chance repeatable: see `c/chance.c`.
fn main() {
    println!("cargo:rerun-if-changed=c/chance.c");
    cc::Build::new()
        .file("c/chance.c")
        .warnings(true)
        .link_lib_modifier("+whole-archive")
        .compile("chance");
}
