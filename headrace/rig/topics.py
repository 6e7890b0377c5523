"""Creates topics, and waits until clients can use them."""

import asyncio

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaError, TopicAlreadyExistsError

from bridge.config.model import Kafka
from bridge.errors import HeadraceError
from bridge.kafka import client_options, sentence


async def create_topics(
    kafka: Kafka, topics: dict[str, int], configs: dict[str, str] | None = None, existing_ok: bool = False
) -> None:
    """Create topics with so many partitions each, in three copies where there are brokers for it.

    Returns once every partition has a leader.

    Raises:
        HeadraceError: Kafka does not answer, or refuses.
    """
    admin = AIOKafkaAdminClient(**client_options(kafka))
    try:
        await admin.start()
        copies = min(3, len((await admin.describe_cluster())["brokers"]))
        wanted = [NewTopic(name, count, copies, topic_configs=configs or {}) for name, count in topics.items()]
        fine = {0, TopicAlreadyExistsError.errno} if existing_ok else {0}
        answer = await admin.create_topics(wanted)
        failed = [f"{item[0]}: {item[2] or item[1]}" for item in answer.topic_errors if item[1] not in fine]
        if failed:
            raise HeadraceError(f"Kafka does not create the topics: {'; '.join(failed)}")
        for _ in range(100):
            described = [item for item in await admin.describe_topics() if item["topic"] in topics]
            if len(described) == len(topics) and all(
                t["error_code"] == 0 and all(p["leader"] >= 0 for p in t["partitions"]) for t in described
            ):
                return
            await asyncio.sleep(0.1)  # a new topic's leaders are elected within moments
        raise HeadraceError(f"the topics {', '.join(topics)} have no leader after 10 s")
    except KafkaError as error:
        raise HeadraceError(sentence(error, kafka)) from None
    finally:
        await admin.close()
