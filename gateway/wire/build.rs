//! Compiles the client protocol without a system `protoc`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let file = "mailbox/client/v1/client.proto";
    println!("cargo:rerun-if-changed=proto/{file}");
    let descriptors = protox::compile([file], ["proto"])?;
    tonic_prost_build::configure()
        .bytes(".")
        .build_client(false)
        .build_server(false)
        .compile_fds(descriptors)?;
    Ok(())
}
