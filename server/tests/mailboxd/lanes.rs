//! The service that relays of other nodes call: for them only, and bounded.

use mailbox_api::CallError;
use mailbox_api::peer::lanes_client::LanesClient;
use mailbox_api::peer::{DeliverFrame, DeliverReply, LaneRun, Shipment};
use mailbox_api::v1::ErrorCode;
use tonic::Status;

use crate::cluster::with_secret_of;
use crate::process::Dev;

type Frames = tokio_stream::Iter<std::vec::IntoIter<DeliverFrame>>;

fn shipment(id: u64, runs: usize) -> Shipment {
    let run = LaneRun {
        source: 1,
        source_incarnation: 1,
        destination: 2,
        destination_incarnation: 1,
        first_seq: 1,
        items: bytes::Bytes::new(),
    };
    Shipment {
        id,
        shard: 4000,
        runs: vec![run; runs],
    }
}

fn frames(shipments: Vec<Shipment>) -> Frames {
    tokio_stream::iter(vec![DeliverFrame { shipments }])
}

async fn first_answer(
    dev: &Dev,
    request: tonic::Request<Frames>,
) -> Result<Option<DeliverReply>, Status> {
    let address = format!("http://{}", dev.text("grpc"));
    let mut lanes = LanesClient::connect(address).await.expect("it listens");
    lanes.deliver(request).await?.into_inner().message().await
}

#[tokio::test(flavor = "multi_thread")]
async fn lanes_take_nothing_from_strangers_and_users() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(dir.path());
    let shipments = || frames(vec![shipment(1, 1)]);
    let code = |status: Status| CallError::from_status(&status).code();

    let refused = first_answer(&dev, tonic::Request::new(shipments())).await;
    assert_eq!(code(refused.unwrap_err()), ErrorCode::Unauthenticated);
    let wrong = with_secret_of(shipments(), b"0123456789abcdef0123");
    let refused = first_answer(&dev, wrong).await;
    assert_eq!(code(refused.unwrap_err()), ErrorCode::Unauthenticated);
    let mut of_user = tonic::Request::new(shipments());
    let bearer = format!("Bearer {}", dev.user("alice", "token"));
    let metadata = of_user.metadata_mut();
    metadata.insert(
        mailbox_api::metadata::AUTHORIZATION,
        bearer.parse().unwrap(),
    );
    let refused = first_answer(&dev, of_user).await;
    assert_eq!(code(refused.unwrap_err()), ErrorCode::Forbidden);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shipment_for_no_shard_is_answered_and_a_frame_over_its_limit_ends_the_stream() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(dir.path());
    let secret = std::fs::read(dir.path().join("mailbox.secret")).unwrap();
    let secret = secret.trim_ascii_end();

    let request = with_secret_of(frames(vec![shipment(7, 1)]), secret);
    let answer = first_answer(&dev, request).await.expect("answered");
    let answers = answer.expect("an answer").shipments;
    assert_eq!(answers.len(), 1);
    assert_eq!(answers[0].id, 7);
    let fault = answers[0].fault.as_ref().expect("there is no such shard");
    assert!(fault.message.contains("4000"), "{}", fault.message);

    let request = with_secret_of(frames(vec![shipment(8, 4097)]), secret);
    let ended = first_answer(&dev, request).await.unwrap_err();
    let error = CallError::from_status(&ended);
    assert_eq!(error.code(), ErrorCode::LimitExceeded);
    assert!(
        error.0.message.contains("4096") && error.0.message.contains("4097"),
        "{error}"
    );
}
