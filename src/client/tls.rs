//! TLS of the client, by rustls: ring is its one provider of cryptography, given to it and not taken from the process.

use std::io;
use std::sync::{Arc, OnceLock};

use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::{self, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{self, ClientConfig, RootCertStore};

/// Certificates that cannot be trusted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrustError {
    /// It is not PEM.
    #[error("the certificates cannot be read: {0}")]
    Pem(#[from] pem::Error),
    /// One of them is none of an authority.
    #[error("a certificate cannot be trusted: {0}")]
    Certificate(#[from] rustls::Error),
    /// There is none.
    #[error("there is no certificate in what was given; PEM begins with -----BEGIN CERTIFICATE-----")]
    Nothing,
}

/// Whom to trust. The system's authorities are read with the first connection.
#[derive(Clone, Default)]
pub(super) struct Tls {
    config: OnceLock<Arc<ClientConfig>>,
}

impl Tls {
    /// Trusts these and no others.
    pub(super) fn trusting(pem: &[u8]) -> Result<Self, TrustError> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(pem) {
            roots.add(certificate?)?;
        }
        if roots.is_empty() {
            return Err(TrustError::Nothing);
        }
        let tls = Self::default();
        tls.config.get_or_init(|| config(roots));
        Ok(tls)
    }

    pub(super) async fn connect(&self, host: &str, tcp: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        let name = ServerName::try_from(host.to_owned()).map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        let config = Arc::clone(self.config.get_or_init(|| {
            let mut roots = RootCertStore::empty();
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            config(roots)
        }));
        TlsConnector::from(config).connect(name, tcp).await
    }
}

fn config(roots: RootCertStore) -> Arc<ClientConfig> {
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let builder = builder.with_safe_default_protocol_versions().expect("ring has the suites of TLS 1.2 and 1.3");
    let mut config = builder.with_root_certificates(roots).with_no_client_auth();
    // A proxy that could speak HTTP/2 must not be offered it: a WebSocket is upgraded from HTTP/1.1.
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Arc::new(config)
}
