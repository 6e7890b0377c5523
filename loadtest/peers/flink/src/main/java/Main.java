import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import com.google.common.util.concurrent.FutureCallback;
import com.google.common.util.concurrent.Futures;
import com.google.common.util.concurrent.MoreExecutors;
import com.google.protobuf.ByteString;
import headrace.inference.v2.InferenceV2.InferTensor;
import headrace.inference.v2.InferenceV2.ModelInferRequest;
import headrace.inference.v2.InferenceV2.ModelInferResponse;
import io.grpc.CallOptions;
import io.grpc.ManagedChannel;
import io.grpc.ManagedChannelBuilder;
import io.grpc.MethodDescriptor;
import io.grpc.protobuf.ProtoUtils;
import io.grpc.stub.ClientCalls;
import java.io.Serializable;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.concurrent.Executors;
import java.util.concurrent.ScheduledExecutorService;
import java.util.concurrent.TimeUnit;
import org.apache.flink.api.common.eventtime.WatermarkStrategy;
import org.apache.flink.api.common.typeinfo.TypeInformation;
import org.apache.flink.configuration.Configuration;
import org.apache.flink.connector.kafka.sink.KafkaRecordSerializationSchema;
import org.apache.flink.connector.kafka.sink.KafkaSink;
import org.apache.flink.connector.kafka.source.KafkaSource;
import org.apache.flink.connector.kafka.source.enumerator.initializer.OffsetsInitializer;
import org.apache.flink.connector.kafka.source.reader.deserializer.KafkaRecordDeserializationSchema;
import org.apache.flink.api.common.functions.OpenContext;
import org.apache.flink.streaming.api.datastream.AsyncDataStream;
import org.apache.flink.streaming.api.environment.StreamExecutionEnvironment;
import org.apache.flink.streaming.api.functions.async.ResultFuture;
import org.apache.flink.streaming.api.functions.async.RichAsyncFunction;
import org.apache.flink.util.Collector;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.producer.ProducerRecord;

/**
 * Flink with asynchronous calls to the model server, results in order, checkpoints every second.
 *
 * <p>With a batch size of 1 each event is a call, as its documentation shows. With more, the function gathers events of
 * its own accord, since Flink has no operator for that.
 *
 * <p>Main BROKERS SOURCE TARGET MODEL_ADDRESS MODEL FEATURES MODEL_FOLDER BATCH
 */
public final class Main {
  /** A record, as far as it matters here. */
  public static final class Event implements Serializable {
    public byte[] key;
    public byte[] value;
    public int partition;
  }

  public static void main(String[] args) throws Exception {
    Configuration configuration = new Configuration();
    configuration.setString("taskmanager.memory.managed.size", "64m");
    configuration.setString("taskmanager.memory.network.max", "128m");
    StreamExecutionEnvironment flink = StreamExecutionEnvironment.createLocalEnvironment(1, configuration);
    flink.enableCheckpointing(1000);
    flink.getConfig().enableObjectReuse();

    KafkaSource<Event> source =
        KafkaSource.<Event>builder()
            .setBootstrapServers(args[0])
            .setTopics(args[1])
            .setGroupId(args[2])
            .setStartingOffsets(OffsetsInitializer.earliest())
            .setDeserializer(new Reader())
            .build();
    KafkaSink<Event> sink =
        KafkaSink.<Event>builder()
            .setBootstrapServers(args[0])
            .setProperty("linger.ms", "5")
            .setRecordSerializer(
                (KafkaRecordSerializationSchema<Event>)
                    (event, context, now) -> new ProducerRecord<>(args[2], event.partition, event.key, event.value))
            .build();
    var events = flink.fromSource(source, WatermarkStrategy.noWatermarks(), "events");
    var calls = new Calls(args[3], args[4], Integer.parseInt(args[5]), Integer.parseInt(args[7]));
    AsyncDataStream.orderedWait(events, calls, 60, TimeUnit.SECONDS, 2048).sinkTo(sink);
    System.out.println("ready");
    flink.execute();
  }

  private static final class Reader implements KafkaRecordDeserializationSchema<Event> {
    @Override
    public void deserialize(ConsumerRecord<byte[], byte[]> record, Collector<Event> out) {
      Event event = new Event();
      event.key = record.key();
      event.value = record.value();
      event.partition = record.partition();
      out.collect(event);
    }

    @Override
    public TypeInformation<Event> getProducedType() {
      return TypeInformation.of(Event.class);
    }
  }

  private record Waiting(Event event, ResultFuture<Event> result) {}

  private static final class Calls extends RichAsyncFunction<Event, Event> {
    private final String address;
    private final String model;
    private final int features;
    private final int most;
    private transient ManagedChannel channel;
    private transient MethodDescriptor<ModelInferRequest, ModelInferResponse> method;
    private transient ObjectMapper json;
    private transient List<Waiting> waiting;
    private transient ScheduledExecutorService timer;

    Calls(String address, String model, int features, int most) {
      this.address = address;
      this.model = model;
      this.features = features;
      this.most = most;
    }

    @Override
    public void open(OpenContext context) {
      channel = ManagedChannelBuilder.forTarget(address).usePlaintext().build();
      method =
          MethodDescriptor.<ModelInferRequest, ModelInferResponse>newBuilder()
              .setType(MethodDescriptor.MethodType.UNARY)
              .setFullMethodName("inference.GRPCInferenceService/ModelInfer")
              .setRequestMarshaller(ProtoUtils.marshaller(ModelInferRequest.getDefaultInstance()))
              .setResponseMarshaller(ProtoUtils.marshaller(ModelInferResponse.getDefaultInstance()))
              .build();
      json = new ObjectMapper();
      waiting = new ArrayList<>();
      timer = Executors.newSingleThreadScheduledExecutor();
      timer.scheduleAtFixedRate(this::flush, 5, 5, TimeUnit.MILLISECONDS);
    }

    @Override
    public void close() {
      timer.shutdownNow();
      channel.shutdownNow();
    }

    @Override
    public void asyncInvoke(Event event, ResultFuture<Event> result) {
      List<Waiting> full = null;
      synchronized (this) {
        waiting.add(new Waiting(event, result));
        if (waiting.size() >= most) {
          full = take();
        }
      }
      if (full != null) {
        ask(full);
      }
    }

    private void flush() {
      List<Waiting> some;
      synchronized (this) {
        some = take();
      }
      if (!some.isEmpty()) {
        ask(some);
      }
    }

    private List<Waiting> take() {
      List<Waiting> taken = waiting;
      waiting = new ArrayList<>(most);
      return taken;
    }

    private void ask(List<Waiting> batch) {
      ByteBuffer rows = ByteBuffer.allocate(4 * features * batch.size()).order(ByteOrder.LITTLE_ENDIAN);
      try {
        for (Waiting item : batch) {
          JsonNode event = json.readTree(item.event.value);
          for (int n = 0; n < features; n++) {
            rows.putFloat((float) event.get("f" + n).asDouble());
          }
        }
      } catch (Exception error) {
        batch.forEach(item -> item.result.completeExceptionally(error));
        return;
      }
      ModelInferRequest request =
          ModelInferRequest.newBuilder()
              .setModelName(model)
              .addInputs(
                  InferTensor.newBuilder()
                      .setName("features")
                      .setDatatype("FP32")
                      .addShape(batch.size())
                      .addShape(features))
              .addRawInputContents(ByteString.copyFrom(rows.flip()))
              .build();
      var answer = ClientCalls.futureUnaryCall(channel.newCall(method, CallOptions.DEFAULT), request);
      Futures.addCallback(
          answer,
          new FutureCallback<>() {
            @Override
            public void onSuccess(ModelInferResponse response) {
              ByteBuffer scores =
                  response.getRawOutputContents(0).asReadOnlyByteBuffer().order(ByteOrder.LITTLE_ENDIAN);
              for (Waiting item : batch) {
                try {
                  item.event.value = json.writeValueAsBytes(Map.of("score", scores.getFloat(), "model", model));
                  item.result.complete(List.of(item.event));
                } catch (Exception error) {
                  item.result.completeExceptionally(error);
                }
              }
            }

            @Override
            public void onFailure(Throwable error) {
              batch.forEach(item -> item.result.completeExceptionally(error));
            }
          },
          MoreExecutors.directExecutor());
    }
  }
}
