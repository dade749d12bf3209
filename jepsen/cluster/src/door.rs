//! How a gateway's port is reached: bare TCP, or TLS with a certificate that the cluster made for it.

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use rustls::pki_types::ServerName;
use rustls::pki_types::pem::PemObject as _;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use toml::{Table, Value};

/// How long a gateway may take to say that it is ready.
const READY_WITHIN: Duration = Duration::from_secs(2);

/// The certificate of all gateways of a cluster, for loopback, and its key. It signs itself, so whoever checks it
/// trusts the same file.
#[derive(Debug, Clone)]
pub(crate) struct GatewayCertificate {
    pub(crate) certificate: PathBuf,
    key: PathBuf,
}

impl GatewayCertificate {
    /// The directory's own, if it has been used before; else a new one.
    pub(crate) fn load_or_make(dir: &Path) -> anyhow::Result<Self> {
        let files = Self {
            certificate: dir.join("gateway.pem"),
            key: dir.join("gateway-key.pem"),
        };
        if files.certificate.exists() && files.key.exists() {
            return Ok(files);
        }
        let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
        let made = rcgen::generate_simple_self_signed(names)
            .context("make a certificate for the gateways")?;
        write(&files.key, &made.signing_key.serialize_pem(), 0o600)?;
        write(&files.certificate, &made.cert.pem(), 0o644)?;
        Ok(files)
    }

    /// The options with which a gateway shows it. The authority stays unset: nodes are called as before.
    pub(crate) fn config(&self) -> String {
        let path = |path: &Path| Value::from(path.to_string_lossy().into_owned());
        let tls = Table::from_iter([
            ("cert_file".to_owned(), path(&self.certificate)),
            ("key_file".to_owned(), path(&self.key)),
        ]);
        Table::from_iter([("tls".to_owned(), Value::from(tls))]).to_string()
    }
}

fn write(path: &Path, text: &str, mode: u32) -> anyhow::Result<()> {
    let mut options = std::fs::OpenOptions::new();
    let options = options.write(true).create(true).truncate(true).mode(mode);
    let file = options.open(path);
    let mut file = file.with_context(|| format!("create {}", path.display()))?;
    let written = file.write_all(text.as_bytes());
    written.with_context(|| format!("write {}", path.display()))
}

/// Either kind of connection.
pub(crate) trait Connection: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Connection for T {}

/// Connects to `address`, with TLS if there is a certificate to trust.
pub(crate) async fn connect(
    address: &str,
    trusted: Option<&Path>,
) -> anyhow::Result<Box<dyn Connection>> {
    let socket = TcpStream::connect(address).await?;
    let Some(file) = trusted else {
        return Ok(Box::new(socket));
    };
    let certificate = rustls::pki_types::CertificateDer::from_pem_file(file);
    let certificate = certificate.with_context(|| format!("read {}", file.display()))?;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate)?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    let name = ServerName::try_from(host.to_owned()).context("name the gateway")?;
    let connector = TlsConnector::from(Arc::new(config));
    Ok(Box::new(connector.connect(name, socket).await?))
}

/// `GET /readyz` of a gateway must say 200.
pub(crate) async fn ask_ready(address: &str, trusted: Option<&Path>) -> anyhow::Result<()> {
    let answer = async {
        let mut socket = connect(address, trusted).await?;
        let request =
            format!("GET /readyz HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
        socket.write_all(request.as_bytes()).await?;
        let mut status_line = [0; 12];
        socket.read_exact(&mut status_line).await?;
        anyhow::Ok(status_line)
    };
    let status_line = tokio::time::timeout(READY_WITHIN, answer)
        .await
        .context("wait for /readyz")??;
    if &status_line != b"HTTP/1.1 200" {
        bail!("/readyz answered {}", String::from_utf8_lossy(&status_line));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_directory_keeps_its_certificate_and_its_key_is_nobody_elses() {
        let dir = tempfile::tempdir().unwrap();
        let first = GatewayCertificate::load_or_make(dir.path()).unwrap();
        let pem = std::fs::read(&first.certificate).unwrap();
        let again = GatewayCertificate::load_or_make(dir.path()).unwrap();
        assert_eq!(std::fs::read(&again.certificate).unwrap(), pem);
        let mode = std::fs::metadata(&first.key).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let config: Table = first.config().parse().unwrap();
        let named = config["tls"]["cert_file"].as_str().unwrap();
        assert_eq!(Path::new(named), first.certificate);
    }

    #[tokio::test]
    async fn tls_is_spoken_with_who_shows_the_certificate_and_nobody_else() {
        let dir = tempfile::tempdir().unwrap();
        let shown = GatewayCertificate::load_or_make(dir.path()).unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        let other = GatewayCertificate::load_or_make(elsewhere.path()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let chain = rustls::pki_types::CertificateDer::from_pem_file(&shown.certificate).unwrap();
        let key = rustls::pki_types::PrivateKeyDer::from_pem_file(&shown.key).unwrap();
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![chain], key)
            .unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        tokio::spawn(async move {
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                if let Ok(mut stream) = acceptor.accept(socket).await {
                    let mut request = [0; 64];
                    let _ = stream.read(&mut request).await;
                    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await;
                    let _ = stream.shutdown().await;
                }
            }
        });
        ask_ready(&address, Some(&shown.certificate)).await.unwrap();
        assert!(ask_ready(&address, Some(&other.certificate)).await.is_err());
    }
}
