import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import java.io.IOException;
import java.util.Map;
import java.util.Properties;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.StreamsBuilder;
import org.apache.kafka.streams.StreamsConfig;
import org.apache.kafka.streams.kstream.Consumed;
import org.apache.kafka.streams.kstream.Produced;
import org.tensorflow.SavedModelBundle;
import org.tensorflow.ndarray.Shape;
import org.tensorflow.ndarray.buffer.DataBuffers;
import org.tensorflow.types.TFloat32;

/**
 * Kafka Streams with the model in the process, as most tutorials teach it: each event is a call of its own.
 *
 * <p>Main BROKERS SOURCE TARGET MODEL_ADDRESS MODEL FEATURES MODEL_FOLDER
 */
public final class Main {
  public static void main(String[] args) {
    String model = args[4];
    int features = Integer.parseInt(args[5]);
    SavedModelBundle bundle = SavedModelBundle.load(args[6], "serve");
    ObjectMapper json = new ObjectMapper();

    StreamsBuilder builder = new StreamsBuilder();
    builder
        .stream(args[1], Consumed.with(Serdes.ByteArray(), Serdes.ByteArray()))
        .mapValues(value -> score(bundle, json, value, features, model))
        .to(args[2], Produced.with(Serdes.ByteArray(), Serdes.ByteArray()));

    Properties properties = new Properties();
    properties.put(StreamsConfig.APPLICATION_ID_CONFIG, args[2]);
    properties.put(StreamsConfig.BOOTSTRAP_SERVERS_CONFIG, args[0]);
    properties.put(StreamsConfig.NUM_STREAM_THREADS_CONFIG, 2);
    properties.put(StreamsConfig.STATE_DIR_CONFIG, System.getProperty("java.io.tmpdir") + "/" + args[2]);
    properties.put("auto.offset.reset", "earliest");
    properties.put("linger.ms", 5);
    KafkaStreams streams = new KafkaStreams(builder.build(), properties);
    Runtime.getRuntime().addShutdownHook(new Thread(streams::close));
    streams.start();
    System.out.println("ready");
  }

  private static byte[] score(
      SavedModelBundle bundle, ObjectMapper json, byte[] value, int features, String model) {
    try {
      JsonNode event = json.readTree(value);
      float[] row = new float[features];
      for (int n = 0; n < features; n++) {
        row[n] = (float) event.get("f" + n).asDouble();
      }
      try (TFloat32 input = TFloat32.tensorOf(Shape.of(1, features), DataBuffers.of(row));
          var outputs = bundle.function("serving_default").call(Map.of("features", input))) {
        TFloat32 scores = (TFloat32) outputs.get("score").get();
        float score = scores.shape().numDimensions() == 1 ? scores.getFloat(0) : scores.getFloat(0, 0);
        return json.writeValueAsBytes(Map.of("score", score, "model", model));
      }
    } catch (IOException error) {
      throw new IllegalArgumentException(error);
    }
  }
}
