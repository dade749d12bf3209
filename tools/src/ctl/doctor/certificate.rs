//! Until when the certificates are good that nodes serve: looked at, not trusted.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, anyhow};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use x509_parser::pem::Pem;

/// How long a node may take to show its certificate.
const LOOK_WAIT: Duration = Duration::from_secs(3);

/// Good until then: seconds since the Unix epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct NotAfter(pub(super) i64);

/// How a certificate stands.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Standing {
    Good,
    Expiring,
    Expired,
}

impl NotAfter {
    pub(super) fn standing(self, now: i64, least: Duration) -> Standing {
        let least = i64::try_from(least.as_secs()).unwrap_or(i64::MAX);
        match self.0.saturating_sub(now) {
            left if left <= 0 => Standing::Expired,
            left if left <= least => Standing::Expiring,
            _ => Standing::Good,
        }
    }

    /// `on <day> (in 3 days)`.
    pub(super) fn words(self, now: i64) -> String {
        let day = x509_parser::time::ASN1Time::from_timestamp(self.0);
        let day = day.map_or_else(|_| format!("second {}", self.0), |day| day.to_string());
        let left = self.0.saturating_sub(now);
        let (count, unit) = match left.unsigned_abs() {
            seconds if seconds >= 2 * 86_400 => (seconds / 86_400, "days"),
            seconds if seconds >= 2 * 3_600 => (seconds / 3_600, "hours"),
            seconds => (seconds / 60, "minutes"),
        };
        match left > 0 {
            true => format!("on {day} (in {count} {unit})"),
            false => format!("on {day} ({count} {unit} ago)"),
        }
    }
}

/// Seconds since the Unix epoch.
pub(super) fn now() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| {
        i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
    })
}

/// When the first certificate ends of the chain that is served at `address`. Whether it is to be trusted does
/// not matter: an expired one is exactly what is looked for.
pub(super) async fn served_at(address: &str) -> anyhow::Result<NotAfter> {
    let looked = tokio::time::timeout(LOOK_WAIT, chain_at(address)).await;
    let chain = looked.map_err(|_| anyhow!("{address} shows no certificate"))??;
    earliest(chain.iter().map(|der| der.as_ref()))
}

/// When the first of the authorities in a PEM file ends.
pub(super) fn in_pem(pem: &[u8]) -> anyhow::Result<NotAfter> {
    let mut found = Vec::new();
    for block in Pem::iter_from_buffer(pem) {
        let block = block.map_err(|error| anyhow!("it is not PEM: {error}"))?;
        if block.label == "CERTIFICATE" {
            found.push(block.contents);
        }
    }
    earliest(found.iter().map(Vec::as_slice))
}

fn earliest<'a>(chain: impl Iterator<Item = &'a [u8]>) -> anyhow::Result<NotAfter> {
    let mut first: Option<NotAfter> = None;
    for der in chain {
        let parsed = x509_parser::parse_x509_certificate(der);
        let (_, certificate) = parsed.map_err(|error| anyhow!("not a certificate: {error}"))?;
        let end = NotAfter(certificate.validity().not_after.timestamp());
        first = Some(first.map_or(end, |first| first.min(end)));
    }
    first.ok_or_else(|| anyhow!("there is no certificate"))
}

async fn chain_at(address: &str) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let bare = address.trim_start_matches("https://");
    let host = bare.rsplit_once(':').map_or(bare, |(host, _)| host);
    let host = host.trim_matches(['[', ']']).to_owned();
    let name = ServerName::try_from(host).context("name the node")?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let looks = Looks(Arc::clone(&provider));
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(looks))
        .with_no_client_auth();
    let socket = TcpStream::connect(bare).await?;
    let stream = TlsConnector::from(Arc::new(config))
        .connect(name, socket)
        .await?;
    let (_, session) = stream.get_ref();
    let chain = session.peer_certificates().unwrap_or_default();
    Ok(chain.iter().map(|der| der.clone().into_owned()).collect())
}

/// Takes whatever certificate is shown. Nothing is ever sent on such a connection.
#[derive(Debug)]
struct Looks(Arc<CryptoProvider>);

impl ServerCertVerifier for Looks {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: i64 = 86_400;

    #[test]
    fn a_certificate_is_good_until_its_last_days() {
        let end = NotAfter(100 * DAY);
        let least = Duration::from_secs(14 * 86_400);
        assert_eq!(end.standing(85 * DAY, least), Standing::Good);
        assert_eq!(end.standing(86 * DAY, least), Standing::Expiring);
        assert_eq!(end.standing(100 * DAY, least), Standing::Expired);
        assert!(
            end.words(97 * DAY).ends_with("(in 3 days)"),
            "{}",
            end.words(0)
        );
        assert!(end.words(100 * DAY + 7_200).ends_with("(2 hours ago)"));
        assert!(end.words(0).starts_with("on "), "{}", end.words(0));
    }

    #[test]
    fn what_is_no_certificate_is_said_to_be_none() {
        assert!(
            in_pem(b"")
                .unwrap_err()
                .to_string()
                .contains("no certificate")
        );
        let other = b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
        assert!(
            in_pem(other)
                .unwrap_err()
                .to_string()
                .contains("no certificate")
        );
        let broken = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        assert!(
            in_pem(broken)
                .unwrap_err()
                .to_string()
                .contains("not a certificate")
        );
    }
}
