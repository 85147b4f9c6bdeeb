//! A relay's process that slept through the end of its lease, speaking past the product's client, which
//! would not say such things.
use sealane_runtime::{grpc, identity::Identity};
use sealane_wire::v1::{self, deliver_event, deliver_request::Frame, queue_client::QueueClient};
use tokio::sync::mpsc;

/// Reports, and returns whether it was believed; `None` if there was no answer.
pub(crate) async fn tell(identity: Identity, address: String, report: v1::Report) -> Option<bool> {
    let (id, epoch) = (report.id.clone(), report.epoch);
    let mut client = QueueClient::new(grpc::channel(&address, &identity).ok()?);
    let (frames, queued) = mpsc::channel(4);
    let relay = "zombie".to_owned();
    for frame in [
        Frame::Hello(v1::DeliverHello { relay }),
        Frame::Report(report),
    ] {
        let request = v1::DeliverRequest {
            frame: Some(frame),
            ..v1::DeliverRequest::default()
        };
        frames.send(request).await.ok()?;
    }
    let requests = futures_util::stream::unfold(queued, |mut queued| async move {
        queued.recv().await.map(|frame| (frame, queued))
    });
    let mut events = client.deliver(requests).await.ok()?.into_inner();
    while let Some(event) = events.message().await.ok()? {
        if let Some(deliver_event::Frame::Ack(ack)) = event.frame
            && (ack.id, ack.epoch) == (id.clone(), epoch)
        {
            return Some(ack.accepted);
        }
    }
    None
}
