// Explains one image: go run . IMAGE [ADDRESS [MODEL]]
package main

import (
	"context"
	"fmt"
	"io"
	"os"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	sagittal "example.com/caller/sagittal/v1"
)

func main() {
	address, model := argument(2, "localhost:50051"), argument(3, "efficientnet-lite0")
	image, err := os.ReadFile(argument(1, ""))
	if err != nil {
		fail(err)
	}
	connection, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		fail(err)
	}
	defer connection.Close()
	client := sagittal.NewExplanationServiceClient(connection)
	events, err := client.Explain(context.Background(), &sagittal.ExplainRequest{Spec: &sagittal.ExplanationSpec{
		Model: model,
		Image: &sagittal.Image{Source: &sagittal.Image_Encoded{Encoded: image}},
	}})
	if err != nil {
		fail(err)
	}
	for {
		response, err := events.Recv()
		if err == io.EOF {
			return
		}
		if err != nil {
			fail(err)
		}
		show(response.GetEvent())
	}
}

func show(event *sagittal.ExplanationEvent) {
	switch kind := event.GetEvent().(type) {
	case *sagittal.ExplanationEvent_Prediction:
		target := kind.Prediction.GetTarget()
		fmt.Printf("class %s, probability %.3f\n", target.GetLabel(), target.GetScore())
	case *sagittal.ExplanationEvent_Mask:
		if kind.Mask.GetFinal() {
			saliency := kind.Mask.GetSaliency() // float16, little-endian, row by row
			fmt.Printf("mask of shape %v, %d bytes\n", saliency.GetShape(), len(saliency.GetData()))
		}
	case *sagittal.ExplanationEvent_Completed:
		done := kind.Completed
		fmt.Printf("insertion %.3f, deletion %.3f, %d evaluations\n",
			done.GetInsertion(), done.GetDeletion(), done.GetEvaluations())
	case *sagittal.ExplanationEvent_Failed:
		fail(status.ErrorProto(kind.Failed))
	}
}

// fail prints an error with its reason, the field at fault and the delay before a retry, and exits.
func fail(err error) {
	failure := status.Convert(err)
	fmt.Fprintf(os.Stderr, "%s: %s\n", failure.Code(), failure.Message())
	for _, detail := range failure.Details() {
		switch detail := detail.(type) {
		case *errdetails.ErrorInfo:
			fmt.Fprintf(os.Stderr, "reason %s\n", detail.GetReason())
		case *errdetails.BadRequest:
			for _, violation := range detail.GetFieldViolations() {
				fmt.Fprintf(os.Stderr, "field %s\n", violation.GetField())
			}
		case *errdetails.RetryInfo:
			fmt.Fprintf(os.Stderr, "retry after %s\n", detail.GetRetryDelay().AsDuration())
		}
	}
	os.Exit(1)
}

func argument(position int, otherwise string) string {
	if position < len(os.Args) {
		return os.Args[position]
	}
	return otherwise
}
