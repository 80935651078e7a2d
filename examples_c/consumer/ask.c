/* Asks a model one question without a picture: ask MODEL_DIR QUESTION */

#include <smolvlm.h>

#include <stdio.h>

int main(int argc, char **argv) {
    smolvlm_engine *engine = NULL;
    smolvlm_result *result = NULL;
    smolvlm_request request = {0};
    smolvlm_status status;

    if (argc != 3) {
        fprintf(stderr, "usage: %s MODEL_DIR QUESTION\n", argv[0]);
        return 2;
    }
    request.struct_size = sizeof request;
    request.prompt = argv[2];
    request.max_new_tokens = 16;

    status = smolvlm_create(argv[1], NULL, &engine);
    if (status == SMOLVLM_STATUS_OK) {
        status = smolvlm_process(engine, &request, &result);
    }
    if (status == SMOLVLM_STATUS_OK) {
        printf("%s\n", smolvlm_result_text(result, NULL));
    } else {
        fprintf(stderr, "%s\n", smolvlm_last_error());
    }
    smolvlm_result_free(result);
    smolvlm_free(engine);
    return status == SMOLVLM_STATUS_OK ? 0 : 1;
}
