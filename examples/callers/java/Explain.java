// Explains one image: gradle run --args='IMAGE [ADDRESS [MODEL]]'

import com.google.protobuf.Any;
import com.google.protobuf.ByteString;
import com.google.protobuf.Duration;
import com.google.protobuf.InvalidProtocolBufferException;
import com.google.rpc.BadRequest;
import com.google.rpc.ErrorInfo;
import com.google.rpc.RetryInfo;
import com.google.rpc.Status;
import io.grpc.ManagedChannel;
import io.grpc.ManagedChannelBuilder;
import io.grpc.StatusRuntimeException;
import io.grpc.protobuf.StatusProto;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import sagittal.v1.ExplanationOuterClass.ExplanationEvent;
import sagittal.v1.ExplanationOuterClass.ExplanationSpec;
import sagittal.v1.ExplanationServiceGrpc;
import sagittal.v1.ExplanationServiceOuterClass.ExplainRequest;
import sagittal.v1.TensorOuterClass.Image;

public final class Explain {
    public static void main(String[] arguments) throws IOException {
        String address = arguments.length > 1 ? arguments[1] : "localhost:50051";
        String model = arguments.length > 2 ? arguments[2] : "efficientnet-lite0";
        byte[] file = Files.readAllBytes(Path.of(arguments[0]));
        ManagedChannel channel = ManagedChannelBuilder.forTarget(address).usePlaintext().build();
        try {
            Image image = Image.newBuilder().setEncoded(ByteString.copyFrom(file)).build();
            ExplanationSpec spec = ExplanationSpec.newBuilder().setModel(model).setImage(image).build();
            ExplainRequest request = ExplainRequest.newBuilder().setSpec(spec).build();
            ExplanationServiceGrpc.newBlockingStub(channel)
                .explain(request)
                .forEachRemaining(response -> show(response.getEvent()));
        } catch (StatusRuntimeException error) {
            fail(StatusProto.fromThrowable(error));
        } finally {
            channel.shutdown();
        }
    }

    private static void show(ExplanationEvent event) {
        switch (event.getEventCase()) {
            case PREDICTION -> {
                var target = event.getPrediction().getTarget();
                System.out.printf("class %s, probability %.3f%n", target.getLabel(), target.getScore());
            }
            case MASK -> {
                if (event.getMask().getFinal()) {
                    var saliency = event.getMask().getSaliency(); // float16, little-endian, row by row
                    System.out.printf("mask of shape %s, %d bytes%n", saliency.getShapeList(), saliency.getData().size());
                }
            }
            case COMPLETED -> {
                var done = event.getCompleted();
                System.out.printf("insertion %.3f, deletion %.3f, %d evaluations%n",
                    done.getInsertion(), done.getDeletion(), done.getEvaluations());
            }
            case FAILED -> fail(event.getFailed());
            default -> { }
        }
    }

    /** Prints an error with its reason, the field at fault and the delay before a retry, and exits. */
    private static void fail(Status status) {
        System.err.printf("%d: %s%n", status.getCode(), status.getMessage());
        try {
            for (Any detail : status.getDetailsList()) {
                if (detail.is(ErrorInfo.class)) {
                    System.err.println("reason " + detail.unpack(ErrorInfo.class).getReason());
                } else if (detail.is(BadRequest.class)) {
                    for (var violation : detail.unpack(BadRequest.class).getFieldViolationsList()) {
                        System.err.println("field " + violation.getField());
                    }
                } else if (detail.is(RetryInfo.class)) {
                    System.err.println("retry after " + seconds(detail.unpack(RetryInfo.class).getRetryDelay()) + " s");
                }
            }
        } catch (InvalidProtocolBufferException error) {
            throw new IllegalStateException(error);
        }
        System.exit(1);
    }

    private static double seconds(Duration duration) {
        return duration.getSeconds() + duration.getNanos() / 1e9;
    }
}
