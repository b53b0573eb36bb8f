//! Nothing but the sandbox's helper, so that this crate can be tested without the `kiln` binary.

fn main() {
    kiln_sandbox::run_helper_if_asked();
    eprintln!("kiln-sandbox-helper: started by kiln's sandbox only");
    std::process::exit(2);
}
