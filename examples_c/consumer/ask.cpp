// Asks a model one question without a picture: ask_cpp MODEL_DIR QUESTION

#include <smolvlm.hpp>

#include <exception>
#include <iostream>

int main(int argc, char **argv) {
    if (argc != 3) {
        std::cerr << "usage: " << argv[0] << " MODEL_DIR QUESTION\n";
        return 2;
    }
    try {
        smolvlm_request request = smolvlm::request(argv[2]);
        request.max_new_tokens = 16;
        std::cout << smolvlm::Engine(argv[1]).process(request).text() << "\n";
        return 0;
    } catch (const std::exception &error) {
        std::cerr << error.what() << "\n";
        return 1;
    }
}
